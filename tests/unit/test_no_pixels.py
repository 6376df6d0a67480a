"""A picture never leaves its node: no message has a place for one."""

from __future__ import annotations

import inspect
import typing

import pytest
from pydantic import BaseModel

from apiary.errors import MessageError
from apiary.wire import messages
from apiary.wire.messages import Message

MODELS = [
    m for _, m in inspect.getmembers(messages, inspect.isclass) if issubclass(m, Message) and m is not Message
]


def leaves(model: type[BaseModel], path: str = "") -> list[tuple[str, object]]:
    """Every field of a message with its bare type, nested ones too."""
    found: list[tuple[str, object]] = []

    def walk(name: str, annotation: object) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.extend(leaves(annotation, f"{name}."))
        elif args := typing.get_args(annotation):
            for arg in args:
                walk(name, arg)
        else:
            found.append((name, annotation))

    for field, info in model.model_fields.items():
        walk(f"{path}{field}", info.annotation)
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_no_field_of_a_message_holds_bytes_or_anything_at_all(model: type[Message]) -> None:
    for name, kind in leaves(model):
        assert kind not in (bytes, bytearray, memoryview, object, typing.Any), f"{model.__name__}.{name}"


def test_the_longest_text_of_a_message_is_too_short_for_a_picture() -> None:
    text = "x" * 501
    with pytest.raises(MessageError, match="at most 500 characters"):
        messages.NodeStatus.decode(f'{{"v":1,"state":"ready","why":"{text}"}}'.encode(), who="test")
