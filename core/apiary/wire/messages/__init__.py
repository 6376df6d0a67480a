"""Every JSON control message, typed and bounded: one file a theme."""

from typing import Final

from apiary.wire.messages.base import MAX_BLOB_BYTES as MAX_BLOB_BYTES
from apiary.wire.messages.base import MAX_BYTES as MAX_BYTES
from apiary.wire.messages.base import MAX_LABEL_CHARS as MAX_LABEL_CHARS
from apiary.wire.messages.base import MAX_LABELS as MAX_LABELS
from apiary.wire.messages.base import READABLE_BYTES as READABLE_BYTES
from apiary.wire.messages.base import SEAL_BYTES as SEAL_BYTES
from apiary.wire.messages.base import BlobRef as BlobRef
from apiary.wire.messages.base import Hex as Hex
from apiary.wire.messages.base import Label as Label
from apiary.wire.messages.base import Message as Message
from apiary.wire.messages.base import Name as Name
from apiary.wire.messages.base import fits_label as fits_label
from apiary.wire.messages.coordinator import Announcement as Announcement
from apiary.wire.messages.coordinator import Contributor as Contributor
from apiary.wire.messages.coordinator import CoordinatorStatus as CoordinatorStatus
from apiary.wire.messages.coordinator import ModelManifest as ModelManifest
from apiary.wire.messages.coordinator import Needs as Needs
from apiary.wire.messages.coordinator import Notice as Notice
from apiary.wire.messages.coordinator import RoundResult as RoundResult
from apiary.wire.messages.coordinator import parts_of as parts_of
from apiary.wire.messages.node import Ask as Ask
from apiary.wire.messages.node import Likely as Likely
from apiary.wire.messages.node import NodeHealth as NodeHealth
from apiary.wire.messages.node import NodeState as NodeState
from apiary.wire.messages.node import NodeStatus as NodeStatus
from apiary.wire.messages.node import Prediction as Prediction
from apiary.wire.messages.node import Progress as Progress
from apiary.wire.messages.operators import AnswerState as AnswerState
from apiary.wire.messages.operators import NodeCommand as NodeCommand
from apiary.wire.messages.operators import NodeReply as NodeReply
from apiary.wire.messages.operators import OperatorReply as OperatorReply
from apiary.wire.messages.operators import OperatorRequest as OperatorRequest
from apiary.wire.messages.plan import Bounds as Bounds
from apiary.wire.messages.plan import Plan as Plan
from apiary.wire.messages.releases import NodeRelease as NodeRelease
from apiary.wire.messages.releases import PictureShape as PictureShape
from apiary.wire.messages.releases import Release as Release
from apiary.wire.messages.releases import ReleaseCurrent as ReleaseCurrent
from apiary.wire.messages.releases import RolloutState as RolloutState
from apiary.wire.messages.transfer import Grant as Grant
from apiary.wire.messages.transfer import Offer as Offer
from apiary.wire.messages.transfer import Receipt as Receipt
from apiary.wire.messages.transfer import TrainMetrics as TrainMetrics
from apiary.wire.messages.transfer import Want as Want

BY_KIND: Final = {
    message.kind: message for message in Message.__subclasses__() if message is not ReleaseCurrent
}
"""The message of each kind of topic. `ReleaseCurrent` is missing: whoever trusts its seal decodes it."""
