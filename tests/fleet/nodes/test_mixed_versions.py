"""Nodes and coordinators of this and the previous version in one fleet."""

from __future__ import annotations

import json
from functools import partial

import pytest
from tests.fleet.harness import Fleet, MakeFleet
from tests.stand_ins.memory_bus import MemoryBroker

from apiary import __version__
from apiary.wire import NodeId
from apiary.wire.topics import TopicKind, Topics

NEW_FIELDS = {"capabilities", "repeat_s"}


class OldNodesBroker(MemoryBroker):
    """Takes from statuses of some nodes, and of the coordinator, what the previous version does not send."""

    def __init__(self, *old: str, coordinator: bool = False):
        super().__init__(seed=1, latency_s=0.01)
        self.old = {Topics().build(TopicKind.NODE_STATUS, node=NodeId(node)) for node in old}
        if coordinator:
            self.old.add(Topics().build(TopicKind.COORDINATOR_STATUS))

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if topic in self.old and payload:
            status = {k: v for k, v in json.loads(payload).items() if k not in NEW_FIELDS | {"nodes"}}
            payload = json.dumps({**status, "version": "0.0.9"}).encode()
        super().publish(topic, payload, retain=retain)


def rounds_are_over(fleet: Fleet, count: int) -> bool:
    return len(fleet.results()) >= count


def contributors(fleet: Fleet) -> list[list[str]]:
    return [sorted(result["contributors"]) for result in fleet.results()]


def test_a_fleet_of_two_versions_trains_as_one_of_this(make_fleet: MakeFleet) -> None:
    alone = make_fleet(4, rounds=2).run()["model_sha256"]
    for broker in (OldNodesBroker("pi-00", "pi-02"), OldNodesBroker(coordinator=True)):
        fleet = make_fleet(4, rounds=2, broker=broker)
        assert fleet.run()["model_sha256"] == alone


def test_nodes_are_upgraded_one_by_one_in_a_run_and_go_back(make_fleet: MakeFleet) -> None:
    broker = OldNodesBroker("pi-00", "pi-01", "pi-02")
    fleet = make_fleet(3, rounds=6, broker=broker)
    undisturbed = make_fleet(3, rounds=6).run()["model_sha256"]
    topics = {node: Topics().build(TopicKind.NODE_STATUS, node=NodeId(node)) for node in fleet.nodes}
    for done, node in enumerate(("pi-00", "pi-01", "pi-02"), 1):
        fleet.until(partial(rounds_are_over, fleet, done), 120)
        fleet.kill_node(node)
        broker.old.discard(topics[node])
        fleet.start_node(node)
    fleet.until(lambda: len(fleet.results()) >= 4, 120)
    fleet.kill_node("pi-01")
    broker.old.add(topics["pi-01"])
    fleet.start_node("pi-01")
    assert fleet.run()["model_sha256"] == undisturbed
    assert contributors(fleet) == [["pi-00", "pi-01", "pi-02"]] * 6


def test_a_round_draws_only_nodes_that_can_do_what_it_asks(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A codec that came after 0.1, say: its nodes have no list, and are not asked for it."""
    from apiary.wire import capabilities

    old = capabilities.VERSION_0 - {"codec.int8"}
    monkeypatch.setattr("apiary_coordinator.fleet.demands.VERSION_0", old)
    fleet = make_fleet(
        4, rounds=1, min_nodes=2, plan={"codec": "int8"}, broker=OldNodesBroker("pi-00", "pi-02")
    )
    fleet.run()
    assert contributors(fleet) == [["pi-01", "pi-03"]]
    said = [m for m in caplog.messages if "not drawn" in m]
    assert said == [
        "nodes=2 not drawn: pi-00, pi-02: "
        "cannot do what the round needs (version 0.0.9): codec.int8; upgrade the node"
    ]


def test_one_warning_names_all_nodes_of_other_versions(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(5, stay=True, broker=OldNodesBroker("pi-01", "pi-03"))
    for _ in range(3000):
        fleet.turn()
    assert [m for m in caplog.messages if "another version" in m] == [
        f"2 nodes run another version than the coordinator ({__version__}): 0.0.9: pi-01, pi-03. "
        "How to upgrade: docs/operations.md"
    ]
