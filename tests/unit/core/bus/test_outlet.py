from __future__ import annotations

import json

from tests.stand_ins.memory_bus import MemoryBroker

from apiary.bus.bus import Received
from apiary.bus.outlet import Outlet
from apiary.wire import NodeId
from apiary.wire.messages import Ask, Message, NodeStatus, Progress
from apiary.wire.topics import TopicKind, Topics

NODE = NodeId("pi-1")


def test_messages_go_to_their_own_topics_with_their_own_flags() -> None:
    broker = MemoryBroker()
    bus, watcher = broker.bus("a"), broker.bus("w")
    watcher.subscribe("apiary/#")
    bus.poll(0)
    watcher.poll(0)
    outlet = Outlet(bus, Topics("farm"))
    assert outlet.send(NodeStatus(state="ready"), NODE)
    assert outlet.send(Ask(), NODE)
    assert outlet.metric("accuracy", 0.123456789)
    got = {e.topic: e.payload for e in watcher.poll(0) if isinstance(e, Received)}
    assert list(got) == [
        "apiary/farm/node/pi-1/status",
        "apiary/farm/node/pi-1/ask",
        "apiary/farm/metric/accuracy",
    ]
    assert json.loads(got["apiary/farm/node/pi-1/status"])["state"] == "ready"
    assert got["apiary/farm/metric/accuracy"] == b"0.123457"
    assert sorted(broker.retained) == ["apiary/farm/metric/accuracy", "apiary/farm/node/pi-1/status"]


def test_retained_state_lives_here_and_comes_back_after_the_broker_forgot() -> None:
    broker = MemoryBroker()
    bus = broker.bus("a")
    outlet = Outlet(bus, Topics())
    assert not outlet.send(NodeStatus(state="init"), NODE)
    assert not outlet.send(NodeStatus(state="ready"), NODE)
    bus.poll(0)
    outlet.restore()
    assert [json.loads(p)["state"] for p in broker.retained.values()] == ["ready"]
    broker.forget()
    broker.now += 1
    bus.poll(0)
    assert broker.retained == {}
    outlet.restore()
    assert len(broker.retained) == 1


def test_what_is_not_retained_is_not_said_again() -> None:
    broker = MemoryBroker()
    bus = broker.bus("a")
    bus.poll(0)
    outlet = Outlet(bus, Topics())
    outlet.send(Progress(run="r", round=1, epoch=1, epochs=2), NODE)
    published = broker.counts.published
    outlet.restore()
    assert broker.counts.published == published


def test_a_tap_sees_everything_sent() -> None:
    seen: list[tuple[TopicKind, NodeId | None, Message]] = []
    outlet = Outlet(MemoryBroker().bus("a"), Topics(), lambda *what: seen.append(what))
    outlet.send(Ask(session="x"), NODE)
    assert seen == [(TopicKind.NODE_ASK, NODE, Ask(session="x"))]
