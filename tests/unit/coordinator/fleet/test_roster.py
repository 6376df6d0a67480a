"""Which nodes are known, and which are fit."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary_coordinator.fleet.demands import Demands
from apiary_coordinator.fleet.roster import SILENT_AFTER, Roster

NORTH = Demands(only=("site=north",))
A = NodeId("a")


def status(state: str = "ready", **more: Any) -> NodeStatus:
    return NodeStatus.model_validate({"state": state, "samples": 10, **more})


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


def test_twenty_thousand_nodes_are_known_at_most() -> None:
    roster, told = Roster(), status()
    for i in range(20_001):
        roster.update(NodeId(f"pi-{i}"), told, 0.0)
    assert len(roster) == 20_000


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
    demands = Demands(min_samples=7)
    assert roster.unfit(NodeId("a"), demands) == why
    assert roster.fit(demands) == ([] if why else ["a"])


def test_the_fit_come_sorted() -> None:
    roster = Roster()
    for name in "cab":
        roster.update(NodeId(name), status(), 0.0)
    assert roster.fit(Demands()) == ["a", "b", "c"]


def tagged(roster: Roster, node: str, **tags: str) -> None:
    roster.update(NodeId(node), status(tags=tags), 0.0)


def test_a_run_for_certain_tags_draws_those_alone() -> None:
    roster = Roster()
    tagged(roster, "a", site="north", hardware="pi4")
    tagged(roster, "b", site="north", hardware="pi3")
    tagged(roster, "c", site="south", hardware="pi4")
    tagged(roster, "d")
    assert roster.fit(Demands(only=("site=north",))) == ["a", "b"]
    assert roster.fit(
        Demands(
            only=(
                "site=north",
                "site=south",
            )
        )
    ) == ["a", "b", "c"]
    assert roster.fit(
        Demands(
            only=(
                "site=north",
                "site=south",
                "hardware=pi4",
            )
        )
    ) == ["a", "c"]
    assert roster.unfit(NodeId("c"), NORTH) == (
        "the run is for site=north; this node has hardware=pi4 site=south"
    )
    assert roster.unfit(NodeId("d"), NORTH) == "the run is for site=north; this node has no tags"


def test_the_name_is_a_tag_that_no_node_gives_itself() -> None:
    roster = Roster()
    for node, tags in (("a", {}), ("b", {"node": "a"})):
        roster.update(NodeId(node), NodeStatus(state="ready", samples=9, tags=tags), 0.0)
    assert roster.fit(Demands(only=("node=a",))) == ["a"]
    assert roster.fit(Demands(only=("node=a", "node=b"))) == ["a", "b"]


def silent_after(told: NodeStatus, *, looks_s: float) -> bool:
    roster = Roster()
    roster.update(A, told, 100.0)
    return roster.look(100.0 + looks_s) == [A]


@pytest.mark.parametrize(
    ("told", "looks_s", "silent"),
    [
        (status(repeat_s=66.0), SILENT_AFTER * 66.0, False),
        (status(repeat_s=66.0), SILENT_AFTER * 66.0 + 0.1, True),
        (status(repeat_s=86_400.0), SILENT_AFTER * 4320.0, False),
        (status(repeat_s=86_400.0), SILENT_AFTER * 4320.0 + 0.1, True),
        (status("training", repeat_s=1.0), 3.1, True),
        (status("paused", repeat_s=1.0), 3.1, True),
        (status("lost", repeat_s=1.0), 1e6, False),
        (status(), 1e6, False),
    ],
)
def test_who_is_silent(told: NodeStatus, looks_s: float, silent: bool) -> None:
    assert silent_after(told, looks_s=looks_s) is silent


def test_what_a_broker_kept_is_no_sign_of_life() -> None:
    roster = Roster()
    roster.update(A, status(repeat_s=60.0), 0.0)
    for now in (100.0, 170.0):
        roster.update(A, status(repeat_s=60.0), now)  # the coordinator connected again
    assert roster.look(181.0) == [A] and roster.look(182.0) == []
    assert roster.unfit(A, Demands()) == (
        "silent: it should send something every 60 s, and nothing came for 180 s"
    )
    assert roster.fit(Demands()) == []
    roster.update(A, status(repeat_s=60.0), 200.0)
    assert roster.fit(Demands()) == []
    assert roster.hear(A, 1_700_000_000.0, 201.0)
    assert not roster.hear(A, 1_700_000_001.0, 202.0)
    assert roster.heard == {A: 1_700_000_001.0}
    assert roster.fit(Demands()) == [A]
    assert roster.look(202.0 + 180.0) == [] and roster.look(202.0 + 180.1) == [A]


def test_a_time_in_which_nothing_could_be_heard_is_no_silence() -> None:
    roster = Roster()
    roster.update(A, status(repeat_s=60.0), 0.0)
    roster.deaf(3600.0)
    assert roster.look(3600.0 + 180.0) == [] and roster.look(3600.0 + 181.0) == [A]


def test_a_message_of_a_node_that_is_not_known_is_nobodys() -> None:
    roster = Roster()
    assert not roster.hear(A, 1.0, 1.0)
    assert roster.heard == {} and A not in roster


def test_a_time_without_a_link_counts_for_no_node_whenever_it_came_or_spoke() -> None:
    roster = Roster()
    roster.deaf(100.0)
    roster.update(A, status(repeat_s=60.0), 1000.0)
    assert roster.look(1000.0 + 180.0) == [] and roster.look(1000.0 + 180.1) == [A]
    roster.hear(A, 1.0, 2000.0)
    roster.deaf(50.0)
    assert roster.look(2050.0 + 180.0) == [] and roster.look(2050.0 + 180.1) == [A]


def test_who_says_that_it_is_lost_is_not_silent_any_more() -> None:
    roster = Roster()
    roster.update(A, status(repeat_s=1.0), 0.0)
    assert roster.look(10.0) == [A]
    roster.update(A, status("paused", repeat_s=1.0), 11.0)
    assert list(roster.silent) == [A]
    roster.update(A, status("lost", repeat_s=1.0), 12.0)
    assert roster.silent == {} and roster.away(A) == "lost"


def test_a_node_that_is_forgotten_leaves_nothing_behind() -> None:
    roster = Roster()
    roster.update(A, status(repeat_s=1.0), 0.0)
    roster.hear(A, 1.0, 0.0)
    assert roster.look(10.0) == [A]
    roster.forget(A)
    assert (roster.nodes, roster.heard, roster.silent, roster.look(1e9)) == ({}, {}, {}, [])
    roster.update(A, status(repeat_s=1.0), 1e9)
    assert roster.look(1e9 + 1) == [] and roster.fit(Demands()) == [A]


def test_the_groups_of_a_tag() -> None:
    roster = Roster()
    tagged(roster, "a", site="north", hardware="pi4")
    tagged(roster, "b", site="south")
    tagged(roster, "c", hardware="pi4")
    assert roster.groups("site") == {"a": "north", "b": "south"}
    assert roster.groups("room") == roster.groups(None) == {}


def test_the_tags_that_there_are() -> None:
    roster = Roster()
    tagged(roster, "a", site="north", hardware="pi4")
    tagged(roster, "b", site="south")
    assert roster.tags() == ["hardware=pi4", "site=north", "site=south"]
    assert roster.tags("site") == ["site=north", "site=south"]
