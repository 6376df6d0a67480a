"""Who is fit, and who is drawn."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary_coordinator.fleet.roster import Draw, Roster, draw, rank


def status(state: str = "ready", **more: Any) -> NodeStatus:
    return NodeStatus.model_validate({"state": state, "samples": 10, **more})


def drawn(candidates: list[NodeId], **more: Any) -> Draw:
    options = {"seed": 1, "round_number": 1, "fraction": 1.0, "min_nodes": 1, "cohort_size": None}
    return draw(candidates, **{**options, "over_select": 1.0, **more})


NODES = [NodeId(f"pi-{i:02d}") for i in range(30)]


def test_a_node_is_known_by_its_last_status() -> None:
    roster = Roster()
    assert roster.update(NodeId("a"), status(), 1.0) is None
    before = roster.update(NodeId("a"), status("training"), 5.0)
    assert before is not None and before.status.state == "ready"
    assert roster[NodeId("a")].status.state == "training"
    assert len(roster) == 1 and "a" in roster and "b" not in roster


def test_since_counts_from_the_last_change_of_state() -> None:
    roster = Roster()
    roster.update(NodeId("a"), status(), 1.0)
    roster.update(NodeId("a"), status(samples=11), 5.0)
    assert roster[NodeId("a")].since == 1.0
    roster.update(NodeId("a"), status("lost"), 7.0)
    assert roster[NodeId("a")].since == 7.0


def test_a_node_over_the_bound_is_not_taken_but_known_ones_are() -> None:
    roster = Roster(max_nodes=2)
    for name in "abc":
        roster.update(NodeId(name), status(), 0.0)
    assert sorted(roster.nodes) == ["a", "b"]
    roster.update(NodeId("b"), status("paused"), 1.0)
    assert roster[NodeId("b")].status.state == "paused"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (status(), None),
        (status("training"), None),
        (status("sending"), None),
        (status("lost"), "lost"),
        (status("lost", why="connection lost"), "connection lost"),
        (status("paused", why="too hot"), "too hot"),
        (status("init"), "init"),
        (status(samples=7), None),
        (status(samples=6), "has 6 samples, the plan asks for 7"),
        (status(samples=None), "has 0 samples, the plan asks for 7"),
    ],
)
def test_who_is_fit(told: NodeStatus, why: str | None) -> None:
    roster = Roster()
    roster.update(NodeId("a"), told, 0.0)
    assert roster[NodeId("a")].unfit(7) == why
    assert roster.fit(7) == ([] if why else ["a"])


def test_the_fit_come_sorted() -> None:
    roster = Roster()
    for name in "cab":
        roster.update(NodeId(name), status(), 0.0)
    assert roster.fit(1) == ["a", "b", "c"]


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


def tagged(roster: Roster, node: str, **tags: str) -> None:
    roster.update(NodeId(node), status(tags=tags), 0.0)


def test_a_run_for_certain_tags_draws_those_alone() -> None:
    roster = Roster()
    tagged(roster, "a", site="north", hardware="pi4")
    tagged(roster, "b", site="north", hardware="pi3")
    tagged(roster, "c", site="south", hardware="pi4")
    tagged(roster, "d")
    assert roster.fit(1, ["site=north"]) == ["a", "b"]
    assert roster.fit(1, ["site=north", "site=south"]) == ["a", "b", "c"]
    assert roster.fit(1, ["site=north", "site=south", "hardware=pi4"]) == ["a", "c"]
    assert roster[NodeId("c")].unfit(1, ["site=north"]) == (
        "the run is for site=north; this node has hardware=pi4 site=south"
    )
    assert roster[NodeId("d")].unfit(1, ["site=north"]) == "the run is for site=north; this node has no tags"


def test_a_balanced_draw_takes_the_groups_in_turn() -> None:
    groups = {n: "north" if i < 24 else "south" for i, n in enumerate(NODES)}
    found = drawn(NODES, cohort_size=10, groups=groups)
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
