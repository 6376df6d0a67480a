"""Every JSON control message, typed and bounded: one file a theme."""

from typing import Final

from apiary.wire.messages.base import (
    MAX_BLOB_BYTES,
    MAX_BYTES,
    MAX_LABEL_CHARS,
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
    Ranges,
    Text,
    Unit,
    fits_label,
)
from apiary.wire.messages.coordinator import (
    Announcement,
    Contributor,
    CoordinatorStatus,
    ModelManifest,
    Needs,
    Notice,
    RoundResult,
    RoundState,
)
from apiary.wire.messages.health import NodeHealth
from apiary.wire.messages.node import (
    Ask,
    Likely,
    NodeState,
    NodeStatus,
    Prediction,
    Progress,
)
from apiary.wire.messages.operators import (
    AnswerState,
    Json,
    NodeCommand,
    NodeReply,
    OperatorReply,
    OperatorRequest,
)
from apiary.wire.messages.plan import (
    Bounds,
    Plan,
)
from apiary.wire.messages.releases import (
    NodeRelease,
    NodeReleaseState,
    PictureShape,
    Release,
    ReleaseCurrent,
    RolloutState,
)
from apiary.wire.messages.transfer import (
    Grant,
    Offer,
    Receipt,
    TrainMetrics,
    Want,
)
from apiary.wire.topics import TopicKind

BY_KIND: Final[dict[TopicKind, type[Message]]] = {
    message.kind: message
    for message in (
        Announcement,
        Ask,
        CoordinatorStatus,
        Grant,
        ModelManifest,
        NodeCommand,
        NodeHealth,
        NodeRelease,
        NodeReply,
        NodeStatus,
        Notice,
        Offer,
        OperatorReply,
        OperatorRequest,
        Prediction,
        Progress,
        Receipt,
        RoundResult,
        Want,
    )
}
"""The message of each kind of topic. `ReleaseCurrent` is missing: whoever trusts its seal decodes it."""

__all__ = [
    "BY_KIND",
    "MAX_BLOB_BYTES",
    "MAX_BYTES",
    "MAX_LABELS",
    "MAX_LABEL_CHARS",
    "READABLE_BYTES",
    "SEAL_BYTES",
    "Announcement",
    "AnswerState",
    "Ask",
    "BlobRef",
    "Bounds",
    "Contributor",
    "CoordinatorStatus",
    "Count",
    "Grant",
    "Hex",
    "Json",
    "Label",
    "Likely",
    "Message",
    "ModelManifest",
    "Name",
    "Needs",
    "NodeCommand",
    "NodeHealth",
    "NodeRelease",
    "NodeReleaseState",
    "NodeReply",
    "NodeState",
    "NodeStatus",
    "Notice",
    "Number",
    "Offer",
    "OperatorReply",
    "OperatorRequest",
    "Part",
    "PictureShape",
    "Plan",
    "Prediction",
    "Progress",
    "Ranges",
    "Receipt",
    "Release",
    "ReleaseCurrent",
    "RolloutState",
    "RoundResult",
    "RoundState",
    "Text",
    "TrainMetrics",
    "Unit",
    "Want",
    "fits_label",
]
