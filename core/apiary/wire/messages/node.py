"""What a node says of itself. Pure."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from apiary.tags import MAX_TAGS
from apiary.wire.messages.base import MAX_LABELS, Count, Label, Message, Name, Number, Text, Unit
from apiary.wire.topics import Kind

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
    tags: Annotated[dict[Name, Name], Field(max_length=MAX_TAGS)] = Field(default_factory=dict)
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
