"""Who comes, goes, and goes for good, as the coordinator knows it."""

from __future__ import annotations

import pytest
from tests.fleet.harness import Fleet, MakeFleet

from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary.wire.topics import TopicKind
from apiary_coordinator.fleet.roster import Roster


def roster_of(fleet: Fleet) -> Roster:
    assert fleet.coordinator is not None
    return fleet.coordinator.roster


def test_a_last_will_is_no_sign_of_life(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, stay=True)
    fleet.until(lambda: len(roster_of(fleet).heard) == 2)
    for _ in range(100):
        fleet.turn()
    heard = roster_of(fleet).heard[NodeId("pi-00")]
    assert heard < fleet.broker.now - 5
    fleet.kill_node("pi-00")
    fleet.until(lambda: roster_of(fleet)[NodeId("pi-00")].status.state == "lost")
    assert roster_of(fleet).heard[NodeId("pi-00")] == heard


def test_a_node_whose_status_was_removed_is_gone_for_good(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=1, lost_grace_s=5)
    fleet.trainings["pi-02"].seconds = 1000
    fleet.until(lambda: fleet.runner)
    del fleet.nodes["pi-02"]  # it hangs: its link is up, and the broker says nothing of it
    topic = fleet.settings().topics.build(TopicKind.NODE_STATUS, node=NodeId("pi-02"))
    operator = fleet.broker.bus("operator", None)
    operator.poll(0)
    operator.publish(topic, b"", retain=True)
    fleet.run(seconds=60)
    assert "pi-02" not in roster_of(fleet) and topic not in fleet.broker.retained
    (result,) = fleet.results()
    assert result["missing"] == {"pi-02": "its status was removed from the broker"}


def test_a_node_that_has_no_place_is_said(make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet = make_fleet(2, rounds=1)
    roster_of(fleet)._max = 2
    fleet.until(lambda: len(roster_of(fleet)) == 2)
    for i in range(3):
        topic = fleet.settings().topics.build(TopicKind.NODE_STATUS, node=NodeId(f"late-{i}"))
        bus = fleet.broker.bus(f"late-{i}", None)
        bus.poll(0)
        bus.publish(topic, NodeStatus(state="ready", samples=9).encode(), retain=True)
    assert fleet.run()["rounds_closed"] == 1
    said = [m for m in caplog.messages if "takes part in nothing" in m]
    assert len(said) == 1 and said[0].startswith("node late-0 takes part in nothing: 2 nodes are known")
