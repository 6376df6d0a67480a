"""Nodes that died without a last word: their broker, gateway or link said nothing for them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet

from apiary.wire import NodeId
from apiary.wire.topics import TopicKind
from apiary_coordinator.fleet.roster import SILENT_AFTER
from apiary_edge.status.presence import repeat_s

GHOST = NodeId("pi-02")


def ends_silently(fleet: Fleet, node: str = GHOST) -> None:
    """Its process is gone, its link to the broker is up as far as anybody knows: no last will."""
    fleet.trainings[node].stop()
    del fleet.nodes[node]


def silent_s(fleet: Fleet, node: str = GHOST) -> float:
    return SILENT_AFTER * repeat_s(fleet.settings(node).edge)


def silent(fleet: Fleet) -> set[NodeId]:
    assert fleet.coordinator is not None
    return set(fleet.coordinator.roster.silent)


def pass_time(fleet: Fleet, seconds: float) -> None:
    for _ in range(round(seconds / 0.1)):
        fleet.turn()


@pytest.fixture
def staying(make_fleet: MakeFleet) -> Any:
    return lambda nodes=3, **more: make_fleet(nodes, **{"stay": True, "rounds": 1, "min_nodes": 2, **more})


def test_a_silent_node_is_not_drawn_whatever_is_retained(
    staying: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = staying()
    pass_time(fleet, 5)
    ends_silently(fleet)
    pass_time(fleet, silent_s(fleet) - 70)
    assert silent(fleet) == set()
    fleet.until(lambda: silent(fleet) == {GHOST}, 90)
    topic = fleet.settings().topics.build(TopicKind.NODE_STATUS, node=GHOST)
    assert b'"ready"' in fleet.broker.retained[topic]
    # The coordinator connects again, and the broker gives it what it kept.
    fleet.broker.cut("coordinator")
    pass_time(fleet, 10)
    fleet.ask("run.start", name="run")
    (result,) = fleet.until(fleet.results, 60)
    assert sorted(result["contributors"]) == ["pi-00", "pi-01"] and result["missing"] == {}
    assert silent(fleet) == {GHOST}
    heard: Any = fleet.ask("node.heard").result
    assert heard["silent"] == [GHOST]
    assert heard["unfit"] == {GHOST: fleet.coordinator.roster.silent[GHOST]}
    assert sum("pi-02: silent: it should send something every" in m for m in caplog.messages) == 1


def test_a_node_that_was_silent_is_drawn_again_once_it_is_heard(staying: Any) -> None:
    fleet = staying()
    pass_time(fleet, 5)
    ends_silently(fleet)
    fleet.until(lambda: silent(fleet) == {GHOST}, silent_s(fleet) + 10)
    fleet.start_node(GHOST)
    fleet.until(lambda: silent(fleet) == set(), 10)
    fleet.ask("run.start", name="run")
    (result,) = fleet.until(fleet.results, 60)
    assert GHOST in result["contributors"]


def test_a_node_that_falls_silent_in_a_round_gives_its_place_to_another(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=1, cohort_size=3, min_nodes=3, lost_grace_s=5)
    for node in fleet.nodes:
        fleet.trainings[node].seconds = 1000.0
    runner = fleet.until(lambda: fleet.runner, 60)
    gone = runner.round.cohort[0]
    (spare,) = set(fleet.nodes) - set(runner.round.cohort)
    ends_silently(fleet, gone)
    fleet.run(seconds=3000)
    (result,) = fleet.results()
    assert spare in result["contributors"] and gone not in result["contributors"]
    assert result["missing"][gone].startswith("silent: it should send something every")


def test_nodes_that_train_or_send_for_long_are_never_silent(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, rounds=1)
    fleet.trainings["pi-01"].seconds = 2000
    seen: set[NodeId] = set()
    fleet.run(seconds=3000, each=lambda turn: seen.update(silent(fleet)))
    assert seen == set()


def test_a_broker_that_is_away_makes_no_node_silent(staying: Any) -> None:
    fleet = staying()
    pass_time(fleet, 5)
    fleet.broker.stop()
    pass_time(fleet, 2 * silent_s(fleet))
    fleet.broker.start()
    seen: set[NodeId] = set()
    for _ in range(600):
        fleet.turn()
        seen |= silent(fleet)
    assert seen == set()
