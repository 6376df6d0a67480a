"""Messages of the coordinator to all: its state, the round, its result, the model. Pure."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, WrapSerializer, model_serializer

from apiary.wire.held_out import fits
from apiary.wire.messages.base import (
    MAX_LABELS,
    READABLE_BYTES,
    SEAL_BYTES,
    BlobRef,
    Count,
    Hex,
    Label,
    Message,
    Name,
    Number,
    Part,
    Text,
    Unit,
)
from apiary.wire.messages.plan import LATER, Bounds, Plan
from apiary.wire.topics import TopicKind

RoundState = Literal["open", "collecting", "aggregating", "evaluating", "closed", "failed", "finished"]


class Needs(Part):
    """What decides how much memory a round takes: announced before a node fetches anything.

    A picture's bytes once it is decoded, the numbers (float32) that its frozen base makes of it where there
    is one, and the numbers that all trained layers give for it.
    """

    picture_bytes: Count
    features: Count | None = None
    activations: Count = 0


def _without_what_is_not_used(plan: Plan, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
    """An announcement that asks for nothing new is that of the version before."""
    found: dict[str, Any] = handler(plan)
    return {k: v for k, v in found.items() if k not in LATER or v != Plan.model_fields[k].default}


class Announcement(Message):
    """A round as it stands. `cohort` is None where the list would not be readable; then notices invite.

    `held_out` are the server's held-out pictures by digest (`apiary.wire.held_out`): a node reports how many
    of its own are among them.
    """

    kind: ClassVar[TopicKind] = TopicKind.ROUND_CURRENT
    run: Name
    round: Annotated[int, Field(ge=0, le=10**6)]
    state: RoundState
    rounds: Annotated[int, Field(ge=1, le=10**6)]
    epoch: Name
    labels: Annotated[list[Label], Field(min_length=2, max_length=MAX_LABELS)]
    model: BlobRef
    manifest: BlobRef
    trainer: BlobRef | None = None
    base: BlobRef | None = None
    plan: Annotated[Plan, WrapSerializer(_without_what_is_not_used)]
    bounds: Bounds
    deadline_s: Annotated[float, Field(gt=0, le=10**7)]
    cohort: Annotated[list[Name], Field(max_length=20_000)] | None = None
    cohort_size: Count = 0
    needs: Needs | None = None
    held_out: BlobRef | None = None


class Notice(Message):
    """The current announcement for one node alone; `announcement` is None while no round is open.

    Then `labels` are those of the run that waits for nodes, so that their owners know what to label. `again`
    to a node whose update had its receipt: it was damaged since, and is to be trained once more.
    """

    kind: ClassVar[TopicKind] = TopicKind.NODE_NOTICE
    invited: bool = False
    again: bool | None = None
    announcement: Announcement | None = None
    labels: Annotated[list[Label], Field(max_length=MAX_LABELS)] | None = None


class Contributor(Part):
    """What one accepted update brought: `samples` is its weight, `trained` its report where that is more."""

    samples: Count
    trained: Count | None = None
    bytes: Count
    seconds: Number = 0.0

    @model_serializer(mode="wrap")
    def _without_what_is_equal(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of a node that counts for all it trained on, results and histories are those of versions before."""
        found: dict[str, Any] = handler(self)
        return {key: value for key, value in found.items() if key != "trained" or value is not None}


class RoundResult(Message):
    """A closed or failed round: who contributed, who was rejected and why, and how good the model became.

    On the bus the lists name as many nodes as are readable, the counts speak of all.
    """

    kind: ClassVar[TopicKind] = TopicKind.ROUND_LAST
    run: Name
    round: Count
    state: Literal["closed", "failed"]
    accuracy: Unit | None = None
    tested_on: Count | None = None
    """Held-out pictures of the server that `accuracy` rests on."""
    loss: Number | None = None
    n_contributors: Count = 0
    n_rejected: Count = 0
    n_missing: Count = 0
    n_samples: Count = 0
    contributors: dict[Name, Contributor] = Field(default_factory=dict)
    rejected: dict[Name, Text] = Field(default_factory=dict)
    missing: dict[Name, Text] = Field(default_factory=dict)
    node_accuracy: Unit | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0
    seconds: Number = 0.0
    model: Hex | None = None
    why: Text | None = None
    left_out: dict[Name, Text] | None = None
    """Accepted updates that are not in the mean, at most a few, and why; None where there are none."""

    def readable(self) -> RoundResult:
        """This result with lists so short that it stays below `READABLE_BYTES`: first who was refused."""
        empty = self.model_copy(update={"contributors": {}, "rejected": {}, "missing": {}})
        room = READABLE_BYTES - SEAL_BYTES - len(empty.encode())
        kept: dict[str, dict[str, Any]] = {}
        for field, share in (("rejected", 3), ("missing", 2), ("contributors", 1)):
            kept[field], taken = _first_of(getattr(self, field), room // share)
            room -= taken
        return self.model_copy(update=kept)


def _first_of(nodes: dict[str, Any], room: int) -> tuple[dict[str, Any], int]:
    """As many entries as have room in a JSON object, in bytes, and the room they take."""
    kept: dict[str, Any] = {}
    taken = 0
    for name, value in nodes.items():
        text = (
            value.model_dump_json(exclude_none=True) if isinstance(value, Contributor) else json.dumps(value)
        )
        size = len(name) + len(text) + len('"":,')
        if taken + size > room:
            break
        kept[name] = value
        taken += size
    return kept, taken


class ModelManifest(Message):
    """The newest global model, for people and for nodes that want to predict.

    `model` are its weights; a node predicts with them by what `manifest`, `trainer` and `base` name.
    """

    kind: ClassVar[TopicKind] = TopicKind.MODEL_CURRENT
    run: Name
    round: Count
    model: BlobRef
    labels: list[Label]
    accuracy: Unit | None = None
    best: bool = False
    manifest: BlobRef | None = None
    trainer: BlobRef | None = None
    base: BlobRef | None = None
    tested_on: Count | None = None
    """Held-out pictures that `accuracy` rests on."""


def parts_of(model: Announcement | ModelManifest) -> list[BlobRef]:
    """The blobs that a node needs of a model, those that there are: manifest, trainer, base, weights.

    For a round also the digests that it compares its pictures with, where they are of a size that can be.
    """
    held_out = model.held_out if isinstance(model, Announcement) else None
    if held_out is not None and not fits(held_out.bytes):
        held_out = None
    refs = (model.manifest, model.trainer, model.base, model.model, held_out)
    return [ref for ref in refs if ref is not None]


class CoordinatorStatus(Message):
    """Retained birth and last will of the coordinator. `epoch` is new at each start.

    `nodes` is how many it knows or knew: nodes spread what they say to a new epoch by it.
    """

    kind: ClassVar[TopicKind] = TopicKind.COORDINATOR_STATUS
    state: Literal["online", "offline"]
    epoch: Name
    version: Text = ""
    run: Name | None = None
    nodes: Count | None = None
