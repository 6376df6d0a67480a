"""Tags of nodes (`site = "north"`) and the rules that pick nodes by them (`site=north`). Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

MAX_TAGS: Final = 16
"""Of one node."""
MAX_RULES: Final = 32
NODE: Final = "node"
"""A tag that every node has: its name, as its certificate has it. One that it gives itself is not read."""
_WORD: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_RULE: Final = re.compile(rf"({_WORD})=({_WORD})")

Tags = Mapping[str, str]


def parse_rule(text: str) -> tuple[str, str]:
    """`site=north` as its two words. Raises ValueError with the form of a rule."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text[:80]!r} is no rule on tags: expected TAG=VALUE, such as site=north, each of 1 to 64 "
            "letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return found[1], found[2]


def matches(tags: Tags, rules: Iterable[str]) -> bool:
    """Whether tags keep all rules; of several rules on one tag any will do. No rules: every node."""
    wanted: dict[str, set[str]] = {}
    for rule in rules:
        tag, value = parse_rule(rule)
        wanted.setdefault(tag, set()).add(value)
    return all(tags.get(tag) in values for tag, values in wanted.items())


def with_name(tags: Tags, node: str) -> Tags:
    """A node's tags as rules see them."""
    return {**tags, NODE: node}


def as_text(tags: Tags) -> str:
    """For people: `hardware=pi4 site=north`."""
    return " ".join(f"{tag}={value}" for tag, value in sorted(tags.items()))
