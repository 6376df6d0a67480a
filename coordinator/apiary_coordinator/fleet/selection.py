"""Which nodes take part in a round: the cohort is drawn from those that are fit. Pure."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from apiary.settings import RunSettings
from apiary.wire import NodeId


@dataclass(frozen=True, slots=True)
class Draw:
    """The outcome of drawing a cohort. `reserve` are the others in the order in which they would replace."""

    cohort: tuple[NodeId, ...]
    reserve: tuple[NodeId, ...]
    goal: int


def draw(
    candidates: Iterable[NodeId],
    run: RunSettings,
    round_number: int,
    groups: Mapping[NodeId, str] | None = None,
) -> Draw:
    """Draw a cohort at random, the same for the same candidates, seed and round whatever order they came in.

    The goal is `fraction` of the candidates, at least `min_nodes` (as far as there are so many), at most
    `cohort_size`; the cohort is `over_select` times the goal (Bonawitz et al. 2019, arXiv:1902.01046). With
    `groups` each group gives one node in turn, as long as it has any; nodes without a group are one.
    """
    ranked = sorted(candidates, key=lambda node: rank(run.seed, round_number, node))
    if groups:
        ranked = _in_turn(ranked, groups, run.seed, round_number)
    # The small allowance keeps 0.1 * 30 from becoming 4 by rounding.
    goal = max(math.ceil(run.fraction * len(ranked) - 1e-9), min(run.min_nodes, len(ranked)))
    if run.cohort_size is not None:
        goal = min(goal, run.cohort_size)
    take = min(len(ranked), math.ceil(goal * run.over_select - 1e-9))
    return Draw(tuple(ranked[:take]), tuple(ranked[take:]), goal)


def quorum_of(run: RunSettings, goal: int, least: int) -> int:
    """How many updates a round with this goal needs at its deadline: at least the `least` of its combiner."""
    return max(1, least, math.ceil(run.quorum * goal - 1e-9))


def smallest_goal(run: RunSettings) -> int:
    """The goal of the smallest round that is opened while no node rests."""
    return min(run.min_nodes, run.cohort_size or run.min_nodes)


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
