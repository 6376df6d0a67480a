"""The commonest of many nodes' reasons. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Final

from apiary.wire import NodeId

_VARIES: Final = re.compile(r"/[^\s:]+|'[^']*'|\d+(\.\d+)?")
"""Paths, quoted names and figures: they differ where the reason is the same."""
_MOST: Final = 300


def commonest(reasons: Mapping[NodeId, str]) -> str | None:
    """`3 nodes: REASON` of the reason that most nodes have, with how many in all; None without any."""
    if not reasons:
        return None
    kinds = Counter(_kind(why) for why in reasons.values())
    kind, count = kinds.most_common(1)[0]
    node, why = next((n, w) for n, w in reasons.items() if _kind(w) == kind)
    why = _line(why)[:_MOST]
    if len(reasons) == 1:
        return f"{node}: {why}"
    return f"{count} of {len(reasons)} nodes: {why}" if count > 1 else f"{node}, for one: {why}"


def _kind(why: str) -> str:
    return _VARIES.sub("#", _line(why))


def _line(why: str) -> str:
    return " ".join(why.split())
