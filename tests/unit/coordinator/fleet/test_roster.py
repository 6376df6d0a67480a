"""Which nodes are known, and which are fit."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary_coordinator.fleet.roster import Roster


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
