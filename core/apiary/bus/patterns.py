"""Which topics a subscription covers (MQTT 5, section 4.7)."""

from __future__ import annotations


def matches(pattern: str, topic: str) -> bool:
    """Whether a message on `topic` belongs to the subscription `pattern` (`+` one level, `#` the rest)."""
    if pattern == topic:
        return True
    if topic.startswith("$") and pattern[:1] in "+#":
        return False  # topics of the broker's own are not part of a wildcard at the root [MQTT-4.7.2-1]
    levels = topic.split("/")
    wanted = pattern.split("/")
    for i, want in enumerate(wanted):
        if want == "#":
            return True  # covers the parent level too: `a/#` matches `a`
        if i >= len(levels) or want not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)
