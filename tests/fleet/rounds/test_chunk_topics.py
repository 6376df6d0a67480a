"""Chunks of updates on one topic a node, and on a topic each as the version before sends them."""

from __future__ import annotations

import json
from typing import Any

from tests.fleet.harness import MakeFleet
from tests.stand_ins.memory_bus import MemoryBroker, MemoryBus

from apiary.bus.bus import Received, matches

ONE, OLD = "apiary-blob/default/up/+", "apiary-blob/default/up/+/+/+"


class Watched(MemoryBroker):
    """Counts the two forms; with `before`, grants come as a coordinator of the version before sends them."""

    def __init__(self, *, before: bool = False, refuses_one: bool = False, **more: Any):
        super().__init__(seed=1, latency_s=0.01, **more)
        self.before = before
        self.refuses_one = refuses_one
        self.seen = {ONE: 0, OLD: 0}

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        for form in self.seen:
            self.seen[form] += matches(form, topic)
        if self.refuses_one and matches(ONE, topic):
            return  # an access list of the version before, on MQTT 3.1.1
        super().publish(topic, payload, retain=retain)

    def deliver(self, client: MemoryBus, message: Received) -> None:
        if self.before and message.topic.endswith("/grant"):
            said = json.loads(message.payload)
            said.pop("one_topic", None)
            message = Received(message.topic, json.dumps(said).encode(), message.retained)
        super().deliver(client, message)


def test_a_fleet_of_this_version_sends_on_one_topic(make_fleet: MakeFleet) -> None:
    broker = Watched()
    fleet = make_fleet(3, rounds=2, broker=broker)
    assert len(fleet.run()["contributors"]["2"]) == 3
    assert broker.seen[ONE] > 0
    assert broker.seen[OLD] == 0


def test_with_a_coordinator_or_nodes_of_the_version_before_the_old_topics_are_used(
    make_fleet: MakeFleet,
) -> None:
    """Both mixes are this one: an old coordinator does not say it, an old node does not read it."""
    broker = Watched(before=True)
    fleet = make_fleet(3, rounds=2, broker=broker)
    summary = fleet.run()
    assert len(summary["contributors"]["2"]) == 3
    assert broker.seen[ONE] == 0
    assert summary["model_sha256"] == make_fleet(3, rounds=2).run()["model_sha256"]


def test_an_access_list_of_the_version_before_delays_updates_and_loses_none(make_fleet: MakeFleet) -> None:
    broker = Watched(refuses_one=True)
    fleet = make_fleet(3, rounds=2, broker=broker)
    assert len(fleet.run()["contributors"]["2"]) == 3
    assert broker.seen[ONE] > 0
    assert broker.seen[OLD] > 0
