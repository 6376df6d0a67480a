"""Options of plug-ins: names with defaults, ranges and descriptions; what is said of wrong ones."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from apiary.plugins import suggestion

_LIMITS: Final = {"ge": "at least", "gt": "over", "le": "at most", "lt": "under"}
_KINDS: Final = {int: "a whole number", float: "a number", bool: "true or false"}


class StageOptions(BaseModel):
    """Base of the `Options` of a stage: numbers are finite, and true is none of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def bounds(info: FieldInfo) -> str:
    """What a value may be, such as `1 to 100`, `over 0, at most 1` or `sgd, adam`; empty for free text."""
    kinds = (info.annotation, *get_args(info.annotation))  # `float | None`, `Literal[...] | None`
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return ", ".join(choices)
    limits = {name: getattr(m, name) for m in info.metadata for name in _LIMITS if hasattr(m, name)}
    shown = {name: f"{int(limit) if limit == int(limit) else limit:_}" for name, limit in limits.items()}
    if "ge" in shown and "le" in shown:
        return f"{shown['ge']} to {shown['le']}"
    return ", ".join(f"{words} {shown[name]}" for name, words in _LIMITS.items() if name in shown)


def expected(info: FieldInfo) -> str:
    """A value's kind and bounds, such as `a number over 0, at most 1000`."""
    kinds = (info.annotation, *get_args(info.annotation))
    kind = next((words for of, words in _KINDS.items() if of in kinds), "")
    return f"{kind} {bounds(info)}".strip()


def no_option(name: str, known: Mapping[str, Any] | Iterable[str]) -> str:
    """That there is no such option, with the nearest and those that there are."""
    there = list(known)
    return f"no option {name!r}{suggestion(name, there)} There are: {', '.join(there) or 'none'}"
