"""Who may be drawn now, and what is said while too few may."""

from __future__ import annotations

from typing import Any

from apiary.settings import RunSettings
from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary_coordinator.fleet.demands import Demands
from apiary_coordinator.fleet.muster import Muster, muster
from apiary_coordinator.fleet.rests import FIRST_S, Rests
from apiary_coordinator.fleet.roster import Roster


class Fleet:
    def __init__(self, **nodes: dict[str, Any]):
        self.roster, self.rests = Roster(), Rests()
        for name, more in nodes.items():
            status = NodeStatus.model_validate({"state": "ready", "samples": 10, **more})
            self.roster.update(NodeId(name), status, 0.0)

    def declines(self, node: str, why: str) -> None:
        self.rests.declined(NodeId(node), self.roster[NodeId(node)].status, why, 0.0)

    def muster(self, now: float = 1.0, **demands: Any) -> Muster:
        return muster(self.roster, Demands(**demands), self.rests, now)

    def waits(self, run: RunSettings) -> str:
        return self.muster(only=tuple(run.only)).describe(run, self.roster)


def test_who_declined_keeps_no_others_waiting() -> None:
    fleet = Fleet(a={}, b={}, c={})
    fleet.declines("c", "3 pictures")
    found = fleet.muster()
    assert (found.ready, set(found.resting)) == (["a", "b"], {"c"})
    assert not found.waits_for(3) and found.waits_for(4)
    assert fleet.muster(FIRST_S).ready == ["a", "b", "c"]


def test_where_all_declined_it_waits_whatever_the_least_is() -> None:
    fleet = Fleet(a={}, b={})
    for node in "ab":
        fleet.declines(node, "has too few")
    assert fleet.muster().waits_for(1)
    assert fleet.waits(RunSettings(min_nodes=1)) == (
        "waiting for nodes: 0 of 1 are ready, 2 declined or sent nothing and are drawn again after a pause; "
        "2 of 2 nodes: declined: has too few"
    )


def test_who_rests_does_not_make_a_round_that_is_too_small_for_its_combiner() -> None:
    fleet = Fleet(a={}, b={}, c={}, d={})
    fleet.declines("c", "3 pictures")
    found = fleet.muster()
    assert not found.waits_for(4, 3) and found.waits_for(4, 4)


def test_what_it_waits_for() -> None:
    fleet = Fleet(a={"tags": {"site": "north"}}, b={"state": "lost"}, c={"samples": 0})
    run = RunSettings(min_nodes=3)
    assert fleet.waits(run).startswith("waiting for nodes: 1 of 3 are ready; b, for one: lost")
    only = RunSettings(only=["site=nroth"], min_nodes=1)
    assert fleet.waits(only) == (
        "waiting for nodes with site=nroth: 0 of 1 are ready; no node has site=nroth; there are: site=north"
    )
    several = RunSettings(only=["site=north", "site=south"], min_nodes=2)
    assert "no node has" not in fleet.waits(several)
    two = Fleet(a={"tags": {"site": "north", "hw": "pi4"}})
    assert two.waits(RunSettings(only=["site=north", "hw=pi5"], min_nodes=1)).endswith(
        "0 of 1 are ready; no node has hw=pi5; there are: hw=pi4"
    )
    assert two.waits(RunSettings(only=["room=1"], min_nodes=1)).endswith(
        "no node has room=1; there are: hw=pi4, site=north"
    )
    assert Fleet(a={}).waits(run) == "waiting for nodes: 1 of 3 are ready"
    assert Fleet().waits(only) == "waiting for nodes with site=nroth: 0 of 1 are ready"
    assert Fleet(a={}).waits(only).endswith("no node has site=nroth; there are: no tags at all")


def test_one_ready_node_is_enough_where_no_more_are_needed() -> None:
    found = Fleet(a={}).muster()
    assert not found.waits_for(1)
    assert found.waits_for(1, least=2)


def test_a_name_that_no_node_has_is_named_with_those_there_are() -> None:
    fleet = Fleet(a={}, b={"tags": {"node": "zoe"}})
    assert "no node has node=zoe; there are: node=a, node=b" in fleet.waits(
        RunSettings(only=["node=zoe"], min_nodes=1)
    )
