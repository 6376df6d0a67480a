"""The nodes that the coordinator has heard of: who is here, and what they can do."""

from collections.abc import Sequence
from dataclasses import dataclass

from apiary.tags import as_text, matches
from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its last status described it."""

    id: NodeId
    status: NodeStatus
    since: float
    """Monotonic seconds of its last change of state."""

    def unfit(self, min_samples: int, only: Sequence[str] = ()) -> str | None:
        """Why this node cannot take part now, or None. `only`: rules on its tags."""
        if self.status.state in ("lost", "paused", "init"):
            return self.status.why or self.status.state
        if (self.status.samples or 0) < min_samples:
            return f"has {self.status.samples or 0} samples, the plan asks for {min_samples}"
        if not matches(self.status.tags, only):
            return f"the run is for {', '.join(only)}; this node has {as_text(self.status.tags) or 'no tags'}"
        return None


class Roster:
    """The newest status of every node that was heard of; bounded."""

    def __init__(self, max_nodes: int = 20_000):
        self.nodes: dict[NodeId, Node] = {}
        self._max = max_nodes
        self.heard: dict[NodeId, float] = {}
        """When each node last sent something, seconds since 1970; none where all of it was retained."""

    def update(self, node: NodeId, status: NodeStatus, now: float) -> Node | None:
        """Take a status in; the node as it was known before. A node over the bound is not taken."""
        before = self.nodes.get(node)
        if before is None and len(self.nodes) >= self._max:
            return None
        since = before.since if before is not None and before.status.state == status.state else now
        self.nodes[node] = Node(node, status, since)
        return before

    def forget(self, node: NodeId) -> None:
        """A node is gone for good."""
        self.nodes.pop(node, None)
        self.heard.pop(node, None)

    def hear(self, node: NodeId, wall: float) -> None:
        """A node that is known has just sent a message."""
        if node in self.nodes:
            self.heard[node] = wall

    def __getitem__(self, node: NodeId) -> Node:
        return self.nodes[node]

    def __contains__(self, node: object) -> bool:
        return node in self.nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def fit(self, min_samples: int, only: Sequence[str] = ()) -> list[NodeId]:
        """Those that could take part in a round now, sorted."""
        return sorted(n.id for n in self.nodes.values() if n.unfit(min_samples, only) is None)

    def groups(self, tag: str | None) -> dict[NodeId, str]:
        """The value of this tag of each node that has it."""
        if tag is None:
            return {}
        return {n.id: n.status.tags[tag] for n in self.nodes.values() if tag in n.status.tags}
