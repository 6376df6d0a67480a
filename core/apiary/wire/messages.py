"""Every JSON control message, typed and bounded.

Unknown keys are ignored, so that a minor version may add some; an unknown version is refused. A message
stays below `MAX_BYTES`, checked before it is parsed; MQTT Explorer shows 20,000 bytes, which all but the
announcement to a very large cohort respect.
"""

from __future__ import annotations

import json
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from apiary.errors import MessageError, VersionError
from apiary.wire import PROTOCOL
from apiary.wire.topics import Kind

MAX_BYTES: Final = 256_000
MAX_BLOB_BYTES: Final = 256 * 2**20
READABLE_BYTES: Final = 20_000
MAX_LABELS: Final = 1000
MAX_LABEL_CHARS: Final = 64

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=500)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS)]
Count = Annotated[int, Field(ge=0, le=2**40)]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(lambda x: round(x, 6))]
Number = Annotated[
    float, Field(ge=-1e12, le=1e12, allow_inf_nan=False), AfterValidator(lambda x: round(x, 6))
]
"""Measured figures; six decimals are more than they are good for, and people read them."""
Ranges = Annotated[list[tuple[Count, Count]], Field(max_length=2_000)]
"""Half-open runs of chunk indices, `[[0, 4], [7, 8]]`."""


def fits_label(name: str) -> bool:
    """Whether a message can carry a folder's name as a label."""
    # A name that is no UTF-8 comes from the system with surrogates, which JSON cannot carry.
    return 1 <= len(name) <= MAX_LABEL_CHARS and not any("\ud800" <= c <= "\udfff" for c in name)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Message(_Model):
    """A control message: `encode` and `decode`, and the kind of topic it travels on."""

    kind: ClassVar[Kind]
    v: int = PROTOCOL

    def encode(self) -> bytes:
        """Compact JSON; keys that are None are left out."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decode(cls, payload: bytes, *, who: str) -> Self:
        """Parse a payload from `who`. Raises VersionError or MessageError, never anything else."""
        what = f"{who}: {cls.__name__.lower()}"
        if len(payload) > MAX_BYTES:
            raise MessageError(f"{what} of {len(payload)} bytes, expected at most {MAX_BYTES}")
        try:
            raw = json.loads(payload)
        except (ValueError, RecursionError) as e:
            raise MessageError(f"{what} is not JSON: {str(e)[:80]}") from None
        if not isinstance(raw, dict):
            raise MessageError(f"{what} is a JSON {type(raw).__name__}, expected an object")
        if raw.get("v") != PROTOCOL:
            raise VersionError(
                f"{what} has protocol version {str(raw.get('v'))[:20]}, expected {PROTOCOL}: "
                "upgrade the older party"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as e:
            raise MessageError(f"{what}: {_first(e)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(p) for p in first["loc"]) or "message"
    return f"{where} is {str(first.get('input'))[:60]!r}: {first['msg']}"


class BlobRef(_Model):
    """A blob by digest and size in bytes; the number of chunks follows from the size."""

    digest: Hex
    bytes: Annotated[int, Field(ge=1, le=MAX_BLOB_BYTES)]


class Plan(_Model):
    """How a node trains in this round.

    `learning_rate` > 0; `proximal_mu` >= 0 is FedProx's term (Li et al. 2020, arXiv:1812.06127);
    `validation_share` of a node's pictures never train; `shift` is a share of the picture's side. With
    `partial` a node that runs out of time sends what it has after a whole epoch (as FedProx allows).
    """

    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    optimizer: Literal["sgd", "adam"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    proximal_mu: Annotated[float, Field(ge=0, le=1000)] = 0.0
    class_weights: bool = False
    flip: bool = False
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    validation_share: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    min_samples: Annotated[int, Field(ge=1, le=2**24)] = 1
    partial: bool = False
    codec: Name = "raw_f32"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class Bounds(_Model):
    """What an update may hold; part of the announcement, because the exact sum is built on it."""

    max_abs: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    max_norm: Annotated[float, Field(gt=0, le=1e9)] = 1e6
    max_samples: Annotated[int, Field(ge=1, le=2**24)] = 2**17
    max_bytes: Annotated[int, Field(ge=1, le=MAX_BLOB_BYTES)] = MAX_BLOB_BYTES


RoundState = Literal["open", "collecting", "aggregating", "evaluating", "closed", "failed", "finished"]


class Announcement(Message):
    """A round as it stands. `cohort` is None where the list would not be readable; then notices invite."""

    kind: ClassVar[Kind] = Kind.ROUND_CURRENT
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
    plan: Plan
    bounds: Bounds
    deadline_s: Annotated[float, Field(gt=0, le=10**7)]
    cohort: Annotated[list[Name], Field(max_length=20_000)] | None = None
    cohort_size: Count = 0


class Notice(Message):
    """The current announcement for one node alone; `announcement` is None while no round is open."""

    kind: ClassVar[Kind] = Kind.NODE_NOTICE
    invited: bool = False
    announcement: Announcement | None = None


class Contributor(_Model):
    """What one accepted update brought."""

    samples: Count
    bytes: Count
    seconds: Number = 0.0


class RoundResult(Message):
    """A closed or failed round: who contributed, who was rejected and why, and how good the model became."""

    kind: ClassVar[Kind] = Kind.ROUND_LAST
    run: Name
    round: Count
    state: Literal["closed", "failed"]
    accuracy: Unit | None = None
    loss: Number | None = None
    contributors: dict[Name, Contributor] = Field(default_factory=dict)
    rejected: dict[Name, Text] = Field(default_factory=dict)
    missing: dict[Name, Text] = Field(default_factory=dict)
    node_accuracy: Unit | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0
    seconds: Number = 0.0
    model: Hex | None = None
    why: Text | None = None


class ModelManifest(Message):
    """The newest global model, for people and for nodes that want to predict."""

    kind: ClassVar[Kind] = Kind.MODEL_CURRENT
    run: Name
    round: Count
    model: BlobRef
    labels: list[Label]
    accuracy: Unit | None = None
    best: bool = False


class CoordinatorStatus(Message):
    """Retained birth and last will of the coordinator. `epoch` is new at each start."""

    kind: ClassVar[Kind] = Kind.COORDINATOR_STATUS
    state: Literal["online", "offline"]
    epoch: Name
    version: Text = ""
    run: Name | None = None


NodeState = Literal["init", "ready", "training", "sending", "paused", "lost"]


class NodeStatus(Message):
    """Retained birth and last will of a node. `why` explains paused, lost, or a declined round."""

    kind: ClassVar[Kind] = Kind.NODE_STATUS
    state: NodeState
    why: Text | None = None
    run: Name | None = None
    round: Count | None = None
    samples: Count | None = None
    labels: Annotated[dict[Label, Count], Field(max_length=MAX_LABELS)] | None = None
    declined: bool | None = None
    runtimes: Annotated[list[Name], Field(max_length=8)] = Field(default_factory=list)
    memory_mb: Count | None = None
    version: Text = ""
    session: Name | None = None


class Progress(Message):
    """How far training has come; fire and forget."""

    kind: ClassVar[Kind] = Kind.NODE_PROGRESS
    run: Name
    round: Count
    epoch: Count
    epochs: Count
    loss: Number | None = None
    accuracy: Unit | None = None
    left_s: Number | None = None


class Ask(Message):
    """What is current? Answered by a notice to this node alone. `clock`: the node's, seconds since 1970."""

    kind: ClassVar[Kind] = Kind.NODE_ASK
    session: Name | None = None
    clock: Count | None = None


class Want(Message):
    """Chunks of a blob that a node lacks."""

    kind: ClassVar[Kind] = Kind.NODE_WANT
    digest: Hex
    missing: Ranges


class TrainMetrics(_Model):
    """Of one local training: mean loss of the last epoch, accuracy on the validation split."""

    loss: Number
    accuracy: Unit | None = None
    accuracy_before: Unit | None = None
    seconds: Number = 0.0
    epochs: Count | None = None


class Offer(Message):
    """An update is ready and waits in the node's outbox. `samples` is its weight in the sum."""

    kind: ClassVar[Kind] = Kind.NODE_OFFER
    run: Name
    round: Count
    update: BlobRef
    codec: Name
    samples: Annotated[int, Field(ge=1, le=2**24)]
    metrics: TrainMetrics


class Grant(Message):
    """Send these chunks of the update now."""

    kind: ClassVar[Kind] = Kind.NODE_GRANT
    digest: Hex
    missing: Ranges


class Receipt(Message):
    """What became of an update; anything but `missing` lets the node drop it."""

    kind: ClassVar[Kind] = Kind.NODE_RECEIPT
    digest: Hex
    state: Literal["accepted", "duplicate", "rejected", "closed", "missing"]
    run: Name
    round: Count
    why: Text | None = None
    missing: Ranges | None = None
