"""What every bus does, over mosquitto with both protocols, over amqtt and in memory."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.bus.broker import find_mosquitto, start_broker
from apiary.bus.bus import Bus, Connected, Disconnected, Event, Received, Will
from apiary.bus.flow import ChunkFlow
from apiary.bus.mqtt import MqttBus
from apiary.errors import BusError
from apiary.settings import BrokerSettings
from apiary.wire.chunks import Assembly, digest_of
from apiary.wire.messages import MAX_BYTES

WAIT_S = 10.0


class Party:
    """A bus and everything it was told."""

    def __init__(self, bus: Bus):
        self.bus = bus
        self.events: list[Event] = []

    def received(self) -> list[Received]:
        return [e for e in self.events if isinstance(e, Received)]

    def payloads(self) -> list[bytes]:
        return [e.payload for e in self.received()]


class World:
    """Parties on one broker, polled in turn."""

    def __init__(self, connect: Callable[[str, Will | None], Bus], vanish: Callable[[Bus], None]):
        self._connect = connect
        self.vanish = vanish
        self.parties: list[Party] = []
        self.memory: MemoryBroker | None = None
        # Retained messages outlive a test on a shared broker.
        self.root = f"t-{uuid.uuid4().hex[:8]}"

    def party(self, name: str, *patterns: str, will: Will | None = None) -> Party:
        party = Party(self._connect(f"{name}-{self.root}", will))
        for pattern in patterns:
            party.bus.subscribe(f"{self.root}/{pattern}")
        self.parties.append(party)
        self.until(lambda: party.bus.connected)
        if patterns:
            self.spin(0.1)  # the broker takes subscriptions in its own time
        return party

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < end, "nothing happened in time"
            self.turn()

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + (0 if self.memory else seconds)
        self.turn()
        while time.monotonic() < end:
            self.turn()

    def turn(self) -> None:
        if self.memory is not None:
            self.memory.now += 0.1
        for party in self.parties:
            party.events += party.bus.poll(0.01)

    def close(self) -> None:
        for party in self.parties:
            party.bus.close()


def _vanish(bus: Bus) -> None:
    """Break a connection without a goodbye, as a process that is killed does."""
    assert isinstance(bus, MqttBus)
    bus._drop()
    bus._retry_at = time.monotonic() + 3600


@pytest.fixture(scope="module")
def ports(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Literal["mosquitto", "amqtt"]], int]]:
    running = {}

    def port(kind: Literal["mosquitto", "amqtt"]) -> int:
        if kind == "mosquitto" and find_mosquitto() is None:
            pytest.skip("mosquitto is not installed")
        if kind not in running:
            folder: Path = tmp_path_factory.mktemp(kind)
            running[kind] = start_broker(0, prefer=kind, state_dir=folder, say=lambda _: None)
        return running[kind].port

    yield port
    for broker in running.values():
        broker.stop()


@pytest.fixture(params=["memory", "mosquitto-5", "mosquitto-3.1.1", "amqtt-auto"])
def world(request: pytest.FixtureRequest, ports: Callable[[str], int]) -> Iterator[World]:
    if request.param == "memory":
        broker = MemoryBroker(seed=3)
        world = World(broker.bus, lambda bus: broker.cut(bus.client_id, for_s=3600))  # type: ignore[attr-defined] # a MemoryBus
        world.memory = broker
    else:
        kind, protocol = request.param.split("-")
        settings = BrokerSettings(port=ports(kind), protocol=protocol)
        world = World(lambda name, will: MqttBus(settings, name, will), _vanish)
    yield world
    world.close()


def test_first_event_is_connected_with_limits(world: World) -> None:
    party = world.party("a")
    first = party.events[0]
    assert isinstance(first, Connected)
    assert first.limits.protocol in ("5.0", "3.1.1")


def test_message_reaches_every_subscriber_once_and_nobody_else(world: World) -> None:
    sender = world.party("sender")
    one, two, other = world.party("one", "x/+"), world.party("two", "#"), world.party("other", "y/+")
    assert sender.bus.publish(f"{world.root}/x/1", b"hello")
    world.until(lambda: bool(one.payloads() and two.payloads()))
    world.spin(0.1)
    assert one.received() == two.received() == [Received(f"{world.root}/x/1", b"hello")]
    assert other.received() == []


def test_order_of_one_sender_holds(world: World) -> None:
    sender, receiver = world.party("sender"), world.party("receiver", "n")
    for i in range(200):
        assert sender.bus.publish(f"{world.root}/n", str(i).encode())
    world.until(lambda: len(receiver.payloads()) >= 200)
    assert receiver.payloads() == [str(i).encode() for i in range(200)]


def test_backlog_falls_to_nothing_when_acknowledged(world: World) -> None:
    sender = world.party("sender")
    for _ in range(30):
        sender.bus.publish(f"{world.root}/n", b"x")
    assert sender.bus.backlog == 30
    world.until(lambda: sender.bus.backlog == 0)


def test_fire_and_forget_is_no_backlog(world: World) -> None:
    sender, receiver = world.party("sender"), world.party("receiver", "p")
    assert sender.bus.publish(f"{world.root}/p", b"x", qos=0)
    assert sender.bus.backlog == 0
    world.until(lambda: receiver.payloads() == [b"x"])


def test_retained_message_waits_for_a_later_subscriber_and_says_so(world: World) -> None:
    sender = world.party("sender")
    sender.bus.publish(f"{world.root}/state", b"old", retain=True)
    sender.bus.publish(f"{world.root}/state", b"new", retain=True)
    world.until(lambda: sender.bus.backlog == 0)
    late = world.party("late", "state")
    world.until(lambda: bool(late.received()))
    assert late.received() == [Received(f"{world.root}/state", b"new", retained=True)]


def test_empty_retained_message_clears(world: World) -> None:
    sender = world.party("sender")
    sender.bus.publish(f"{world.root}/state", b"x", retain=True)
    sender.bus.publish(f"{world.root}/state", b"", retain=True)
    world.until(lambda: sender.bus.backlog == 0)
    late = world.party("late", "state")
    world.spin(0.2)
    assert late.received() == []


def test_subscribing_after_connecting_brings_what_is_retained(world: World) -> None:
    sender, receiver = world.party("sender"), world.party("receiver")
    sender.bus.publish(f"{world.root}/state", b"x", retain=True)
    world.until(lambda: sender.bus.backlog == 0)
    receiver.bus.subscribe(f"{world.root}/state")
    world.until(lambda: receiver.payloads() == [b"x"])


def test_unsubscribe_ends_it(world: World) -> None:
    sender, receiver = world.party("sender"), world.party("receiver", "a", "b")
    receiver.bus.unsubscribe(f"{world.root}/a")
    world.spin(0.2)
    sender.bus.publish(f"{world.root}/a", b"no")
    sender.bus.publish(f"{world.root}/b", b"yes")
    world.until(lambda: bool(receiver.payloads()))
    assert receiver.payloads() == [b"yes"]


def test_will_is_published_retained_when_a_party_vanishes(world: World) -> None:
    watcher = world.party("watcher", "status")
    mortal = world.party("mortal", will=Will(f"{world.root}/status", b"lost"))
    world.vanish(mortal.bus)
    world.until(lambda: watcher.payloads() == [b"lost"])
    late = world.party("late", "status")
    world.until(lambda: bool(late.received()))
    assert late.received() == [Received(f"{world.root}/status", b"lost", retained=True)]


def test_will_is_not_published_after_a_goodbye(world: World) -> None:
    watcher = world.party("watcher", "status")
    party = world.party("party", will=Will(f"{world.root}/status", b"lost"))
    party.bus.publish(f"{world.root}/status", b"bye", retain=True)
    party.bus.close()
    world.until(lambda: bool(watcher.payloads()))
    world.spin(0.2)
    assert watcher.payloads() == [b"bye"]


def test_publish_without_a_connection_is_refused_and_forgotten(world: World) -> None:
    receiver, sender = world.party("receiver", "n"), world.party("sender")
    world.vanish(sender.bus)
    assert not sender.bus.publish(f"{world.root}/n", b"x")
    assert sender.bus.backlog == 0
    world.spin(0.1)
    assert receiver.payloads() == []


def test_close_twice_and_poll_after_are_harmless(world: World) -> None:
    party = world.party("party")
    party.bus.close()
    party.bus.close()
    assert not party.bus.connected
    assert not party.bus.publish("x", b"x")


def test_largest_control_message_passes(world: World) -> None:
    sender, receiver = world.party("sender"), world.party("receiver", "n")
    payload = bytes(range(256)) * (MAX_BYTES // 256)
    sender.bus.publish(f"{world.root}/n", payload)
    world.until(lambda: receiver.payloads() == [payload])


def test_blob_goes_through_in_chunks_to_two_who_want_it(world: World) -> None:
    blob = bytes(i * 7 % 251 for i in range(1_000)) * 3_000
    digest = digest_of(blob)
    sender = world.party("sender")
    receivers = [world.party(f"receiver{i}", f"down/{digest}/+") for i in range(2)]
    flow = ChunkFlow()
    flow.add(
        digest,
        len(blob),
        [(0, 10**6)],
        topic=lambda i: f"{world.root}/down/{digest}/{i}",
        read=lambda offset, length: blob[offset : offset + length],
    )
    assemblies = [Assembly(digest, len(blob)) for _ in receivers]
    bodies = [bytearray(len(blob)) for _ in receivers]

    def done() -> bool:
        flow.pump(sender.bus, 8)
        assert sender.bus.backlog <= 8
        for party, assembly, body in zip(receivers, assemblies, bodies, strict=True):
            for event in party.received():
                if taken := assembly.accept(int(event.topic.rsplit("/", 1)[1]), event.payload):
                    offset, data = taken
                    body[offset : offset + len(data)] = data
            party.events.clear()
        return all(a.complete for a in assemblies)

    world.until(done)
    assert bodies == [blob, blob]


# amqtt keeps both connections.
@pytest.mark.parametrize("world", ["memory", "mosquitto-5", "mosquitto-3.1.1"], indirect=True)
def test_another_party_with_our_id_takes_our_place(world: World) -> None:
    first = world.party("same")
    world.parties.remove(first)
    second = world.party("same")
    end = time.monotonic() + WAIT_S
    while first.bus.connected and time.monotonic() < end:
        first.events += first.bus.poll(0.01)
    lost = [e for e in (*first.events, *first.bus.poll(0.05)) if isinstance(e, Disconnected)]
    assert lost
    assert isinstance(lost[0].error, BusError)
    assert second.bus.connected
    first.bus.close()
