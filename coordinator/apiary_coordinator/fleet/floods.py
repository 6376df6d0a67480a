"""Which node sends more messages than any honest one, chunks aside. Pure."""

from collections import Counter
from typing import Final

from apiary.wire import NodeId

PERIOD_S: Final = 60.0
MOST: Final = 600
"""In a period, without chunks: a node under way sends a status, an offer or progress every few seconds."""


class Floods:
    """Counts one period; what it names is for the log, since a broker's own names only who receives."""

    def __init__(self) -> None:
        self._sent: Counter[NodeId] = Counter()
        self._until = 0.0

    def sent(self, node: NodeId, now: float) -> bool:
        """A node sent a message; True for the first that is too many within a period."""
        if now >= self._until:
            self._sent.clear()
            self._until = now + PERIOD_S
        self._sent[node] += 1
        return self._sent[node] == MOST + 1
