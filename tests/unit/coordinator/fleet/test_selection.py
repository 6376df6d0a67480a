"""Which nodes are drawn for a round."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from apiary.settings import RunSettings
from apiary.wire import NodeId
from apiary_coordinator.fleet.selection import Draw, draw, quorum_of, rank, smallest_goal

NODES = [NodeId(f"pi-{i:02d}") for i in range(30)]


def drawn(
    candidates: list[NodeId],
    *,
    round_number: int = 1,
    groups: Mapping[NodeId, str] | None = None,
    **settings: Any,
) -> Draw:
    run = RunSettings.model_validate({"seed": 1, "min_nodes": 1, **settings})
    return draw(candidates, run, round_number, groups)


def test_the_draw_does_not_depend_on_the_order_of_arrival() -> None:
    shuffled = NODES.copy()
    random.Random(3).shuffle(shuffled)
    assert drawn(shuffled, fraction=0.5) == drawn(NODES, fraction=0.5)


def test_cohort_and_reserve_are_everyone_once_in_the_order_of_the_lottery() -> None:
    found = drawn(NODES, fraction=0.2)
    everyone = [*found.cohort, *found.reserve]
    assert everyone == sorted(NODES, key=lambda n: rank(1, 1, n))
    assert len(found.cohort) == 6


def test_each_round_and_each_seed_draws_others() -> None:
    draws = {drawn(NODES, fraction=0.2, seed=s, round_number=r).cohort for s in range(3) for r in range(3)}
    assert len(draws) == 9


def test_over_many_rounds_each_node_is_drawn_about_equally_often() -> None:
    counts = dict.fromkeys(NODES, 0)
    for number in range(1, 501):
        for node in drawn(NODES, fraction=0.2, round_number=number).cohort:
            counts[node] += 1
    # 100 expected each, standard deviation 9: five of them.
    assert all(55 <= n <= 145 for n in counts.values())


@pytest.mark.parametrize(
    ("options", "goal", "cohort"),
    [
        ({}, 30, 30),
        ({"fraction": 0.1}, 3, 3),
        ({"fraction": 0.11}, 4, 4),
        ({"fraction": 0.01}, 1, 1),
        ({"fraction": 0.01, "min_nodes": 5}, 5, 5),
        ({"min_nodes": 50}, 30, 30),
        ({"cohort_size": 4}, 4, 4),
        ({"fraction": 0.1, "cohort_size": 4}, 3, 3),
        ({"fraction": 0.1, "over_select": 1.3}, 3, 4),
        ({"fraction": 0.1, "over_select": 2.0}, 3, 6),
        ({"over_select": 1.3}, 30, 30),
    ],
    ids=str,
)
def test_goal_and_size(options: dict[str, Any], goal: int, cohort: int) -> None:
    found = drawn(NODES, **options)
    assert (found.goal, len(found.cohort)) == (goal, cohort)


def test_a_balanced_draw_takes_the_groups_in_turn() -> None:
    groups = {n: "north" if i < 24 else "south" for i, n in enumerate(NODES)}
    found = drawn(NODES, cohort_size=10, groups=groups)
    everyone = [*found.cohort, *found.reserve]
    for k in range(1, 7):
        assert Counter(groups[n] for n in everyone[: 2 * k]) == {"north": k, "south": k}
    count = Counter(groups[n] for n in found.cohort)
    assert count == {"north": 5, "south": 5}
    assert sorted([*found.cohort, *found.reserve]) == NODES
    # The small group is used up after six of it; then the large one goes on alone.
    assert Counter(groups[n] for n in (*found.cohort, *found.reserve)[:12]) == {"north": 6, "south": 6}
    assert {groups[n] for n in (*found.cohort, *found.reserve)[12:]} == {"north"}


def test_a_balanced_draw_is_seeded_and_keeps_the_lottery_within_a_group() -> None:
    groups = {n: f"site-{i % 3}" for i, n in enumerate(NODES) if i % 5}
    shuffled = NODES.copy()
    random.Random(3).shuffle(shuffled)
    found = drawn(NODES, groups=groups)
    assert drawn(shuffled, groups=groups) == found
    for group in ("site-0", "site-1", "site-2", None):
        members = [n for n in found.cohort if groups.get(n) == group]
        assert members == sorted(members, key=lambda n: rank(1, 1, n))


def test_with_fewer_places_than_groups_each_group_has_its_chance() -> None:
    groups = {n: f"site-{i % 3}" for i, n in enumerate(NODES)}
    first = Counter(
        groups[drawn(NODES, cohort_size=1, round_number=r, groups=groups).cohort[0]] for r in range(1, 301)
    )
    # 100 expected each, standard deviation 8: five of them.
    assert all(59 <= first[f"site-{i}"] <= 141 for i in range(3))


def test_nobody_gives_an_empty_draw() -> None:
    assert drawn([], min_nodes=3) == Draw((), (), 0)


@pytest.mark.parametrize(
    ("quorum", "goal", "least", "expected"),
    [(0.5, 10, 1, 5), (0.5, 5, 1, 3), (0.1, 30, 1, 3), (0.1, 3, 1, 1), (0.5, 4, 3, 3), (1.0, 4, 3, 4)],
)
def test_the_quorum_is_a_share_and_what_the_combiner_needs(
    quorum: float, goal: int, least: int, expected: int
) -> None:
    assert quorum_of(RunSettings(quorum=quorum), goal, least) == expected


def test_the_smallest_goal_is_what_is_drawn_of_the_fewest_nodes() -> None:
    for settings in ({"min_nodes": 6}, {"min_nodes": 6, "cohort_size": 4}, {"min_nodes": 3, "fraction": 0.1}):
        run = RunSettings.model_validate(settings)
        assert smallest_goal(run) == draw(NODES[: run.min_nodes], run, 1).goal
