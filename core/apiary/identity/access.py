"""What an access list of mosquitto (`acl_file`) lets a user read. Pure.

mosquitto grants every subscription and filters what it delivers; this computes beforehand what that will be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Reach(Enum):
    """How much of what a subscription names its user may read."""

    ALL = "all"
    SOME = "some"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line. `user` None: it holds for everyone, and %u in `topic` is his name."""

    user: str | None
    deny: bool
    topic: str


class AccessList:
    """The lines about reading of one file, as mosquitto 2.0 understands them: a `deny` goes first."""

    def __init__(self, text: str):
        self._entries = tuple(_read_lines(text))

    def reach(self, user: str, subscription: str) -> Reach:
        """How much of `subscription`, a topic filter, `user` may read. ALL: but for what a `deny` takes."""
        wanted = _levels(subscription)
        given = [_levels(e.topic.replace("%u", user)) for e in self._of(user) if not e.deny]
        taken = [_levels(e.topic) for e in self._of(user) if e.deny]
        left = [g for g in given if not any(_covers(t, g) for t in taken)]
        if any(_covers(t, wanted) for t in taken) or not any(_meet(wanted, g) for g in left):
            return Reach.NONE
        if any(_covers(g, wanted) for g in left):
            return Reach.ALL
        return Reach.SOME

    def _of(self, user: str) -> list[_Entry]:
        return [e for e in self._entries if e.user in (None, user)]


def _read_lines(text: str) -> list[_Entry]:
    entries, user = [], ""
    for line in text.splitlines():
        verb, _, rest = line.strip().partition(" ")
        if verb == "user":
            user = rest.strip()
        elif verb in ("topic", "pattern"):
            access, _, topic = rest.strip().partition(" ")
            if access not in ("read", "write", "readwrite", "deny"):
                access, topic = "readwrite", rest  # no word: both
            if access != "write":
                whom = None if verb == "pattern" else user
                entries.append(_Entry(whom, access == "deny", topic.strip()))
    return entries


def _levels(topic_filter: str) -> list[str]:
    levels = topic_filter.split("/")
    # mosquitto grants `$share/g` too, which names no topic at all.
    return levels[2:] if levels[0] == "$share" and len(levels) > 2 else levels


def _covers(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether every topic of `narrow` is one of `wide`."""
    for at, level in enumerate(wide):
        if level == "#":
            return True
        # `a/#` names `a` too, which `a/+` does not.
        if at >= len(narrow) or narrow[at] == "#" or level not in ("+", narrow[at]):
            return False
    return len(wide) == len(narrow)


def _meet(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether some topic is in both. A first level with `$` is named by no wildcard."""
    if one[0] != other[0] and "$" in (one[0][:1], other[0][:1]):
        return False
    for a, b in zip(one, other, strict=False):
        if "#" in (a, b):
            return True
        if a != b and "+" not in (a, b):
            return False
    longer = max(one, other, key=len)[min(len(one), len(other)) :]
    return not longer or longer == ["#"]
