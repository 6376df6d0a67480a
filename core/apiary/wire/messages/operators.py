"""Requests of operators to the coordinator, commands of the coordinator to nodes, and their answers."""

import math
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints

from apiary.wire.messages.base import Message, Name, Text
from apiary.wire.topics import TopicKind

MAX_DEPTH: Final = 12
"""Lists and objects within each other."""
MAX_ITEMS: Final = 50_000
"""Values in one tree; a message is at most 256,000 bytes in any case."""


def _plain(value: Any) -> Any:
    """`value` where every party reads the same in it; raises ValueError."""
    left, stack = MAX_ITEMS, [(value, 0)]
    while stack:
        at, depth = stack.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"expected at most {MAX_ITEMS} values, {MAX_DEPTH} deep")
        match at:
            case dict():
                stack += [(part, depth + 1) for pair in at.items() for part in pair]
            case list() | tuple():
                stack += [(part, depth + 1) for part in at]
            case float() if not math.isfinite(at):
                raise ValueError("expected finite numbers")
            case int() if not -(2**53) <= at <= 2**53:
                raise ValueError("expected whole numbers of at most 53 bits")
            case str() if any("\ud800" <= c <= "\udfff" for c in at):
                raise ValueError("expected text that UTF-8 can carry")
            case _:
                pass
    return value


Json = Annotated[JsonValue, BeforeValidator(_plain)]
"""Any JSON value without its corners: NaN, infinities, numbers of more than 53 bits, lone surrogates."""
Arguments = Annotated[dict[str, JsonValue], BeforeValidator(_plain), Field(max_length=64)]
Operation = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}(\.[a-z][a-z0-9_]{0,31})?$")]
AnswerState = Literal["done", "refused", "working"]


class OperatorRequest(Message):
    """What an operator asks of the coordinator. The same `id` again is the same request, not another."""

    kind: ClassVar[TopicKind] = TopicKind.OPERATOR_REQUEST
    id: Name
    op: Operation
    args: Arguments = Field(default_factory=dict)


class OperatorReply(Message):
    """The answer; `working` may come any number of times before `done` or `refused`, which has `why`."""

    kind: ClassVar[TopicKind] = TopicKind.OPERATOR_REPLY
    id: Name
    state: AnswerState
    why: Text | None = None
    result: Json = None


class NodeCommand(Message):
    """A command of the coordinator to one node, and the operator who requested it."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_COMMAND
    id: Name
    op: Operation
    by: Name
    args: Arguments = Field(default_factory=dict)


class NodeReply(Message):
    """The node's own answer to a command."""

    kind: ClassVar[TopicKind] = TopicKind.NODE_REPLY
    id: Name
    state: AnswerState
    why: Text | None = None
    result: Json = None
