"""Nodes that declined a round or missed several rest before they are drawn again, longer each time. Pure.

A node that cannot train, for its data mostly, would cost each round a place and in the end the run; one that
is there and sends nothing would cost each round its whole deadline. It is drawn again after a pause that
doubles, and at once where its samples or its process are others.
"""

from dataclasses import dataclass, replace
from typing import Final

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus

FIRST_S: Final = 60.0
LONGEST_S: Final = 3600.0
MISSES: Final = 2
"""Rounds in a row that come to their deadline without a node: one may be a bad minute of its link."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Of one node. `until` in monotonic seconds; `state` is None until its status is looked at."""

    why: str
    times: int
    until: float
    state: tuple[object, ...] | None


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
        self._rests[node] = Rest(f"declined: {why}", times, now + pause_s, state)

    def missed(self, node: NodeId, deadline_s: float, now: float) -> None:
        """A round came to its deadline after `deadline_s` without this node, which is there; once a round.

        The pause is at least that long: a shorter one would be over with the next round.
        """
        before = self._rests.get(node)
        times = before.times + 1 if before is not None else 1
        pause_s = min(LONGEST_S, max(FIRST_S, deadline_s) * 2.0 ** min(times - MISSES, 16))
        until = now + pause_s if times >= MISSES else now
        self._rests[node] = Rest(f"no update in time, {times} rounds in a row", times, until, None)

    def took_part(self, node: NodeId) -> None:
        """An update of a node was accepted: the next decline or miss is a first one."""
        self._rests.pop(node, None)

    def resting(self, node: NodeId, status: NodeStatus, now: float) -> Rest | None:
        """The rest that keeps a node from being drawn now, or None."""
        rest = self._rests.get(node)
        if rest is None or now >= rest.until:
            return None
        if rest.state is None:
            rest = self._rests[node] = replace(rest, state=_state(status))
        return rest if rest.state == _state(status) else None


def _state(status: NodeStatus) -> tuple[object, ...]:
    """What makes another answer likely where it is another."""
    return (status.samples, tuple(sorted((status.labels or {}).items())), status.session)
