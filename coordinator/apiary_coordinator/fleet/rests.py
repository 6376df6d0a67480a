"""Nodes that declined a round rest before they are drawn again, longer each time. Pure.

A node that cannot train, for its data mostly, would cost each round a place and in the end the run. It is
drawn again after a pause that doubles, and at once where its samples or its process are others.
"""

from dataclasses import dataclass
from typing import Final

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus

FIRST_S: Final = 60.0
LONGEST_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Rest:
    """Of one node. `until` in monotonic seconds."""

    why: str
    times: int
    until: float
    state: tuple[object, ...]


class Rests:
    """Of one run; memory of the coordinator alone, so after its restart each is drawn once more."""

    def __init__(self) -> None:
        self._rests: dict[NodeId, Rest] = {}

    def declined(self, node: NodeId, status: NodeStatus, why: str, now: float) -> None:
        """A node declined the round that is open; once a round."""
        before = self._rests.get(node)
        state = _state(status)
        times = before.times + 1 if before is not None and before.state == state else 1
        pause_s = min(LONGEST_S, FIRST_S * 2.0 ** min(times - 1, 16))
        self._rests[node] = Rest(why, times, now + pause_s, state)

    def took_part(self, node: NodeId) -> None:
        """An update of a node was accepted: the next decline is a first one."""
        self._rests.pop(node, None)

    def resting(self, node: NodeId, status: NodeStatus, now: float) -> Rest | None:
        """The rest that keeps a node from being drawn now, or None."""
        rest = self._rests.get(node)
        if rest is None or now >= rest.until or rest.state != _state(status):
            return None
        return rest


def _state(status: NodeStatus) -> tuple[object, ...]:
    """What makes another answer likely where it is another."""
    return (status.samples, tuple(sorted((status.labels or {}).items())), status.session)
