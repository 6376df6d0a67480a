"""A coordinator that starts after its nodes, or again, and a broker that gives wildcards nothing it kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet
from tests.stand_ins.memory_bus import LinkFault, MemoryBroker

from apiary.wire.messages import CoordinatorStatus
from apiary.wire.topics import TopicKind
from apiary_edge.status.presence import greeting_s
from apiary_edge.training.session import SessionState


def start_again(fleet: Fleet) -> float:
    """Kill the coordinator and start it; when that was."""
    fleet.kill_coordinator()
    for _ in range(20):
        fleet.turn()
    fleet.start_coordinator()
    return fleet.broker.now


def between_rounds(fleet: Fleet, over: int) -> bool:
    return len(fleet.results()) == over and fleet.runner is None


def known(fleet: Fleet) -> int:
    assert fleet.coordinator is not None
    return len(fleet.coordinator.roster)


def test_nodes_are_seen_at_once_where_wildcards_get_nothing_retained(make_fleet: MakeFleet) -> None:
    broker = MemoryBroker(seed=1, latency_s=0.01, wildcards=False)
    fleet = make_fleet(5, broker=broker, stay=True)
    fleet.until(lambda: known(fleet) == 5, 60)
    began = start_again(fleet)
    fleet.until(lambda: known(fleet) == 5, 60)
    assert broker.now - began < 2


def test_a_run_goes_on_with_all_nodes_after_a_restart_where_wildcards_get_nothing(
    make_fleet: MakeFleet,
) -> None:
    broker = MemoryBroker(seed=1, latency_s=0.01, wildcards=False)
    undisturbed = make_fleet(5, rounds=3, min_nodes=2, settle_s=2.0).run()["model_sha256"]
    fleet = make_fleet(5, broker=broker, rounds=3, min_nodes=2, settle_s=2.0)
    for rounds in (1, 2):
        fleet.until(partial(between_rounds, fleet, rounds), 60)
        start_again(fleet)
    assert fleet.run()["model_sha256"] == undisturbed


def test_an_update_that_was_ready_meanwhile_is_offered_at_once_after_a_restart(
    make_fleet: MakeFleet,
) -> None:
    """The round used to wait for the nodes' own repetition, the idle time of an offer."""
    fleet = make_fleet(3, rounds=1, more={"coordinator": {"gather_s": 0.1}})
    fleet.until(lambda: all(n.session.state is SessionState.TRAINING for n in fleet.nodes.values()), 60)
    fleet.kill_coordinator()
    fleet.until(lambda: all(n.session.state is SessionState.SENDING for n in fleet.nodes.values()), 60)
    for node in fleet.nodes.values():
        # As deployed: an offer without an answer is repeated after half a minute.
        object.__setattr__(node.session, "offer_idle_s", 30.0)
    fleet.start_coordinator()
    began = fleet.broker.now
    fleet.run(seconds=60)
    assert fleet.broker.now - began < 5
    assert sorted(fleet.results()[0]["contributors"]) == ["pi-00", "pi-01", "pi-02"]


@pytest.mark.parametrize("lost", [TopicKind.COORDINATOR_STATUS, TopicKind.ROUND_CURRENT])
def test_a_new_coordinator_is_known_by_either_of_its_messages(make_fleet: MakeFleet, lost: TopicKind) -> None:
    fleet = make_fleet(3, rounds=1)
    fleet.until(lambda: all(n.session.state is SessionState.TRAINING for n in fleet.nodes.values()), 60)
    fleet.kill_coordinator()
    fleet.until(lambda: all(n.session.state is SessionState.SENDING for n in fleet.nodes.values()), 60)
    for node in fleet.nodes.values():
        object.__setattr__(node.session, "offer_idle_s", 30.0)
    topic = fleet.settings().topics.build(lost)
    for name in fleet.nodes:
        fleet.broker.script(LinkFault("drop", topic, to=name, times=2))
    fleet.start_coordinator()
    began = fleet.broker.now
    fleet.run(seconds=60)
    assert fleet.broker.now - began < 5


def test_a_coordinator_remembers_how_many_nodes_there_were(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(12, stay=True)
    for _ in range(700):
        fleet.turn()
    topic = fleet.settings().topics.build(TopicKind.COORDINATOR_STATUS)
    fleet.broker.wildcards = False
    start_again(fleet)
    fleet.turn()
    told = CoordinatorStatus.decode(fleet.broker.retained[topic], who="test")
    assert (told.state, told.nodes) == ("online", 12)


def test_a_large_fleet_spreads_what_it_says_to_a_new_coordinator() -> None:
    def times(nodes: int) -> list[float]:
        return sorted(greeting_s(f"pi-{i}", "e1", nodes) for i in range(nodes))  # type: ignore[arg-type] # str

    assert times(1) < [0.01] and times(0) == []
    assert max(times(100)) < 1.0
    thousand = times(1000)
    assert 9.5 < thousand[-1] < 10.0
    most = max(sum(at <= t < at + 1 for t in thousand) for at in range(10))
    assert most < 150
    assert times(20_000)[-1] < 60.0
    one: Any = "pi-1"
    assert greeting_s(one, "e1", 1000) == greeting_s(one, "e1", 1000) != greeting_s(one, "e2", 1000)
