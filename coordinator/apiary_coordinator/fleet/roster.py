"""Who is here, what they can do, and who is drawn for a round."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
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
        self._nodes: dict[NodeId, Node] = {}
        self._max = max_nodes
        self.heard: dict[NodeId, float] = {}
        """When each node last said something, seconds since 1970; nothing where all of it was retained."""

    def update(self, node: NodeId, status: NodeStatus, now: float) -> Node | None:
        """Take a status in; the node as it was known before. A node over the bound is not taken."""
        before = self._nodes.get(node)
        if before is None and len(self._nodes) >= self._max:
            return None
        since = before.since if before is not None and before.status.state == status.state else now
        self._nodes[node] = Node(node, status, since)
        return before

    def forget(self, node: NodeId) -> None:
        """A node is gone for good."""
        self._nodes.pop(node, None)
        self.heard.pop(node, None)

    def hear(self, node: NodeId, wall: float) -> None:
        """A node that is known said something just now."""
        if node in self._nodes:
            self.heard[node] = wall

    def __getitem__(self, node: NodeId) -> Node:
        return self._nodes[node]

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def nodes(self) -> Mapping[NodeId, Node]:
        """All of them, by id."""
        return self._nodes

    def fit(self, min_samples: int, only: Sequence[str] = ()) -> list[NodeId]:
        """Those that could take part in a round now, sorted."""
        return sorted(n.id for n in self._nodes.values() if n.unfit(min_samples, only) is None)

    def groups(self, tag: str | None) -> dict[NodeId, str]:
        """The value of this tag of each node that has it."""
        if tag is None:
            return {}
        return {n.id: n.status.tags[tag] for n in self._nodes.values() if tag in n.status.tags}


@dataclass(frozen=True, slots=True)
class Draw:
    """The outcome of drawing a cohort. `reserve` are the others in the order in which they would replace."""

    cohort: tuple[NodeId, ...]
    reserve: tuple[NodeId, ...]
    goal: int


def draw(
    candidates: Iterable[NodeId],
    *,
    seed: int,
    round_number: int,
    fraction: float,
    min_nodes: int,
    cohort_size: int | None,
    over_select: float,
    groups: Mapping[NodeId, str] | None = None,
) -> Draw:
    """Draw a cohort at random, the same for the same candidates, seed and round whatever order they came in.

    The goal is `fraction` of the candidates, at least `min_nodes` (as far as there are so many), at most
    `cohort_size`; the cohort is `over_select` times the goal (Bonawitz et al. 2019, arXiv:1902.01046). With
    `groups` each group gives one node in turn, as long as it has any; nodes without a group are one.
    """
    ranked = sorted(candidates, key=lambda node: rank(seed, round_number, node))
    if groups:
        ranked = _in_turn(ranked, groups, seed, round_number)
    # The small allowance keeps 0.1 * 30 from becoming 4 by rounding.
    goal = max(math.ceil(fraction * len(ranked) - 1e-9), min(min_nodes, len(ranked)))
    if cohort_size is not None:
        goal = min(goal, cohort_size)
    take = min(len(ranked), math.ceil(goal * over_select - 1e-9))
    return Draw(tuple(ranked[:take]), tuple(ranked[take:]), goal)


def rank(seed: int, round_number: int, node: NodeId) -> bytes:
    """Where a node stands in the lottery of one round."""
    return hashlib.sha256(f"{seed}/{round_number}/{node}".encode()).digest()


def _in_turn(
    ranked: Sequence[NodeId], groups: Mapping[NodeId, str], seed: int, round_number: int
) -> list[NodeId]:
    """One node of each group, then a second of each, and so on; the groups' order is drawn too.

    So the first places are not always those of the same groups where there are fewer places than groups.
    """
    met: dict[str, int] = {}
    keys: dict[NodeId, tuple[int, bytes]] = {}
    for node in ranked:
        group = groups.get(node, "")
        keys[node] = (met.get(group, 0), hashlib.sha256(f"{seed}/{round_number}={group}".encode()).digest())
        met[group] = met.get(group, 0) + 1
    return sorted(ranked, key=keys.__getitem__)
