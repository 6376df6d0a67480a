"""The nodes that the coordinator has heard of: who is here, who is silent, and what they can do."""

import math
from dataclasses import dataclass
from typing import Final

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary_coordinator.fleet.demands import Demands

SILENT: Final = "silent"
"""Shown in place of the state of a node that should have sent something."""
MIN_REPEAT_S: Final = 1.0
"""Whoever claims to send more often would be silent and heard again with every message."""
MAX_REPEAT_S: Final = 1.2 * 3600
"""`edge.refresh_s` at its most, with what is spread by name: who claims more is heard as often as that."""
SILENT_AFTER: Final = 3.0
"""A node that was not heard for so many of its own repetitions is silent: one message may be lost, or two."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its last status described it."""

    id: NodeId
    status: NodeStatus
    since: float
    """Monotonic seconds of its last change of state."""

    @property
    def away(self) -> str | None:
        """Why it cannot take part in anything now, by its own words; None where it can."""
        gone = self.status.state in ("lost", "paused", "init")
        return self.status.why or self.status.state if gone else None


class Roster:
    """The newest status of every node that was heard of; bounded."""

    def __init__(self, max_nodes: int = 20_000):
        self.nodes: dict[NodeId, Node] = {}
        self._max = max_nodes
        self.heard: dict[NodeId, float] = {}
        """When each node last sent something, seconds since 1970; none where all of it was retained."""
        self.silent: dict[NodeId, str] = {}
        """Nodes that should have sent something since, and why that is thought; `look` finds them."""
        self._alive: dict[NodeId, float] = {}
        self._deaf_s = 0.0

    def update(self, node: NodeId, status: NodeStatus, now: float) -> Node | None:
        """Take a status in; the node as it was known before. A node over the bound is not taken.

        By itself it is no sign of life, as a broker may have kept it: only a node that was not known has from
        now on the time that its status claims.
        """
        before = self.nodes.get(node)
        if before is None and len(self.nodes) >= self._max:
            return None
        since = before.since if before is not None and before.status.state == status.state else now
        self.nodes[node] = Node(node, status, since)
        self._alive.setdefault(node, now - self._deaf_s)
        if status.state == "lost":
            self.silent.pop(node, None)
        return before

    def forget(self, node: NodeId) -> None:
        """A node is gone for good."""
        for known in (self.nodes, self.heard, self.silent, self._alive):
            known.pop(node, None)

    def hear(self, node: NodeId, wall: float, now: float) -> bool:
        """A node that is known has just sent a message; whether it was silent before."""
        if node not in self.nodes:
            return False
        self.heard[node] = wall
        self._alive[node] = now - self._deaf_s
        return self.silent.pop(node, None) is not None

    def deaf(self, seconds: float) -> None:
        """For so long no message could come in: that is no node's silence."""
        self._deaf_s += seconds

    def look(self, now: float) -> list[NodeId]:
        """Find nodes that are silent by now; those that are newly so."""
        found: list[NodeId] = []
        for node, known in self.nodes.items():
            repeat_s = min(max(known.status.repeat_s or math.inf, MIN_REPEAT_S), MAX_REPEAT_S)
            if known.status.repeat_s is None or known.status.state == "lost" or node in self.silent:
                continue
            if now - self._deaf_s - self._alive[node] > SILENT_AFTER * repeat_s:
                self.silent[node] = (
                    f"{SILENT}: it should send something every {repeat_s:.0f} s, "
                    f"and nothing came for {SILENT_AFTER * repeat_s:.0f} s"
                )
                found.append(node)
        return found

    def __getitem__(self, node: NodeId) -> Node:
        return self.nodes[node]

    def __contains__(self, node: object) -> bool:
        return node in self.nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def away(self, node: NodeId) -> str | None:
        """Why a node that is known cannot take part in anything now; None where it is here."""
        return self.silent.get(node) or self.nodes[node].away

    def unfit(self, node: NodeId, demands: Demands) -> str | None:
        """Why a node that is known cannot take part now, or None."""
        return self.away(node) or demands.unmet(self.nodes[node].status, node)

    def fit(self, demands: Demands) -> list[NodeId]:
        """Those that could take part in a round now, sorted."""
        return sorted(node for node in self.nodes if self.unfit(node, demands) is None)

    def groups(self, tag: str | None) -> dict[NodeId, str]:
        """The value of this tag of each node that has it."""
        if tag is None:
            return {}
        return {n.id: n.status.tags[tag] for n in self.nodes.values() if tag in n.status.tags}

    def tags(self, tag: str | None = None) -> list[str]:
        """The tags that nodes have as `TAG=VALUE`, sorted; with `tag` those of this name."""
        found = {(name, value) for n in self.nodes.values() for name, value in n.status.tags.items()}
        return [f"{name}={value}" for name, value in sorted(found) if tag in (None, name)]
