"""How blobs and updates travel: want, offer, grant, receipt. Pure."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from apiary.wire.messages.base import BlobRef, Count, Hex, Message, Name, Number, Part, Ranges, Text, Unit
from apiary.wire.topics import TopicKind


class Want(Message):
    """Chunks of a blob that a node lacks."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_WANT
    digest: Hex
    missing: Ranges


class TrainMetrics(Part):
    """Of one local training: mean loss of the last epoch, accuracy on the validation split."""

    loss: Number
    accuracy: Unit | None = None
    accuracy_before: Unit | None = None
    seconds: Number = 0.0
    epochs: Count | None = None


class Offer(Message):
    """An update is ready and waits in the node's outbox. `samples` is its weight in the sum."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_OFFER
    run: Name
    round: Count
    update: BlobRef
    codec: Name
    samples: Annotated[int, Field(ge=1, le=2**24)]
    metrics: TrainMetrics


class Grant(Message):
    """Send these chunks of the update now."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_GRANT
    digest: Hex
    missing: Ranges
    one_topic: bool | None = None
    """The chunks go to `up/NODE`; left out (also by coordinators before 0.2), to `up/NODE/DIGEST/INDEX`."""


ReceiptState = Literal["accepted", "duplicate", "rejected", "closed", "missing"]


class Receipt(Message):
    """What became of an update; anything but `missing` lets the node drop it."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_RECEIPT
    digest: Hex
    state: ReceiptState
    run: Name
    round: Count
    why: Text | None = None
    missing: Ranges | None = None
