"""Many connections in one loop: a bus says by its descriptor and its timer when it has something to do."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from apiary.bus.broker import BrokerProcess, find_mosquitto, start_broker
from apiary.bus.bus import Received
from apiary.bus.mqtt import MqttBus
from apiary.settings import BrokerSettings


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with start_broker(0, prefer="mosquitto") as running:
        yield running


def connected(broker: BrokerProcess, name: str, *, receive_maximum: int = 0) -> MqttBus:
    bus = MqttBus(BrokerSettings(port=broker.port), name, receive_maximum=receive_maximum)
    end = time.monotonic() + 10
    while not bus.connected:
        assert time.monotonic() < end
        bus.poll(0.1)
    return bus


def take(poller: select.epoll, buses: dict[int, MqttBus], seconds: float) -> list[tuple[int, Received]]:
    """Poll only those that are readable, for a while."""
    found = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for fd, _ in poller.poll(left):
            found += [(fd, e) for e in buses[fd].poll(0.0) if isinstance(e, Received)]
            buses[fd].due()
    return found


def test_one_loop_serves_those_that_have_something_to_read(broker: BrokerProcess) -> None:
    buses = {bus.fileno(): bus for bus in (connected(broker, f"many-{i}") for i in range(3))}
    poller = select.epoll()
    for i, (fd, bus) in enumerate(buses.items()):
        poller.register(fd, select.EPOLLIN)
        bus.subscribe(f"many/{i}")
    take(poller, buses, 0.3)
    assert poller.poll(0) == [], "quiet connections are not readable"
    assert all(bus.due() > time.monotonic() for bus in buses.values())
    sender = connected(broker, "many-sender")
    sender.publish("many/1", b"x")
    while sender.backlog:
        sender.poll(0.1)
    found = take(poller, buses, 0.3)
    assert [(fd, e.payload) for fd, e in found] == [(list(buses)[1], b"x")]
    for bus in (*buses.values(), sender):
        bus.close()


def test_large_publish_is_finished_by_the_loop(broker: BrokerProcess) -> None:
    bus = connected(broker, "many-large")
    for _ in range(20):
        bus.publish("many/large", bytes(900_000))
    poller = select.epoll()
    poller.register(bus.fileno(), select.EPOLLIN)
    end = time.monotonic() + 10
    while bus.backlog:
        assert time.monotonic() < end, "what the socket did not take at once was forgotten"
        if bus.due() <= time.monotonic() or poller.poll(0.5):
            bus.poll(0.0)
    bus.close()


def test_all_arrives_in_order_at_a_party_that_lets_the_broker_run_ahead_by_one(broker: BrokerProcess) -> None:
    bus = connected(broker, "many-slow", receive_maximum=1)
    sender = connected(broker, "many-fast")
    bus.subscribe("many/slow")
    bus.poll(0.3)
    for i in range(50):
        sender.publish("many/slow", bytes([i]) * 1000)
    found: list[bytes] = []
    end = time.monotonic() + 10
    while len(found) < 50 and time.monotonic() < end:
        sender.poll(0.0)
        found += [e.payload for e in bus.poll(0.02) if isinstance(e, Received)]
    assert found == [bytes([i]) * 1000 for i in range(50)]
    bus.close()
    sender.close()
