"""Messages of a node about itself and its machine. Pure."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from apiary.tags import MAX_TAGS
from apiary.wire.messages.base import MAX_LABELS, Count, Hex, Label, Message, Name, Number, Part, Text, Unit
from apiary.wire.topics import TopicKind

Flags = Annotated[list[Text], Field(max_length=8)]
MAX_CAPABILITIES: Final = 64
NodeState = Literal["init", "ready", "training", "sending", "paused", "lost"]


class NodeStatus(Message):
    """Retained birth and last will of a node. `why` explains paused, lost, or a declined round."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_STATUS
    state: NodeState
    why: Text | None = None
    run: Name | None = None
    round: Count | None = None
    samples: Count | None = None
    labels: Annotated[dict[Label, Count], Field(max_length=MAX_LABELS)] | None = None
    declined: bool | None = None
    tags: Annotated[dict[Name, Name], Field(max_length=MAX_TAGS)] = Field(default_factory=dict)
    runtimes: Annotated[list[Name], Field(max_length=8)] = Field(default_factory=list)
    memory_mb: Count | None = None
    version: Text = ""
    capabilities: Annotated[list[Name], Field(max_length=MAX_CAPABILITIES)] | None = None
    """What it can do for a round, see `wire.capabilities`; None: what versions before the list could."""
    repeat_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    """It publishes this status, or something else, at least this often; None: no promise."""
    session: Name | None = None
    accuracy_global: Unit | None = None
    accuracy_personal: Unit | None = None
    """Of the newest global model and of the one tuned to this node, on the same held-out pictures of it."""
    model: Text | None = None
    """The model that it predicts with, in words; None where it predicts with none."""
    waiting: Count | None = None
    """Pictures of its sample store that wait for a label."""
    also_held_out: Count | None = None
    """Pictures that it trains on and the server's held-out set has as well, where the two were compared."""


class Progress(Message):
    """How far training has come; fire and forget."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_PROGRESS
    run: Name
    round: Count
    epoch: Count
    epochs: Count
    loss: Number | None = None
    accuracy: Unit | None = None
    left_s: Number | None = None


class Likely(Part):
    """A label and its probability."""

    label: Label
    probability: Unit


class Prediction(Message):
    """A node's prediction on its camera's newest frame; `at` is in seconds since 1970.

    `label` is None where no probability is high enough; `top` holds the most probable ones, best first.
    `personal`: the model `model` was tuned to this node's own pictures.
    """

    kind: ClassVar[TopicKind] = TopicKind.NODE_PREDICTION
    label: Label | None = None
    probability: Unit
    top: Annotated[list[Likely], Field(max_length=10)] = Field(default_factory=list)
    model: Hex
    personal: bool = False
    ms: Number
    at: Number


class Ask(Message):
    """What is current? Answered by a notice to this node alone. `clock`: the node's, seconds since 1970."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_ASK
    session: Name | None = None
    clock: Count | None = None


class NodeHealth(Message):
    """A node's machine; keys that it cannot read are left out. MB are 10**6 bytes.

    `throttled` is what the firmware complains of now (under-voltage, frequency capped, throttled, soft
    temperature limit), `throttled_since_boot` what it has. `memory_available_mb` knows the limits of control
    groups; `service_mb` is the node's own service without its children.
    """

    kind: ClassVar[TopicKind] = TopicKind.NODE_HEALTH
    temperature_c: Number | None = None
    throttled: Flags | None = None
    throttled_since_boot: Flags | None = None
    memory_mb: Count | None = None
    memory_available_mb: Count | None = None
    disk_mb: Count | None = None
    disk_free_mb: Count | None = None
    load: Number | None = None
    cores: Count | None = None
    uptime_s: Count | None = None
    service_mb: Count | None = None
