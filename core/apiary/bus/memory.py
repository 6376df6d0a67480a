"""A broker within one process, under a clock that its owner moves: for simulations and tests.

    broker = MemoryBroker(latency_s=0.05)
    one, two = broker.bus("one"), broker.bus("two")
    two.subscribe("a/#")
    one.poll(0), two.poll(0)
    one.publish("a/b", b"hello")
    broker.now += 0.05                 # time passes only here

The same calls give the same run. Every message goes through the broker at once; a subscriber sees it at the
first `poll` after it is due. Nothing blocks: `poll` ignores its time-out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from apiary.bus.bus import (
    BrokerLimits,
    Connected,
    Disconnected,
    Event,
    PublishRefused,
    Received,
    Will,
    matches,
)
from apiary.errors import BrokerRefused, BrokerUnreachable, BusError

MAX_EVENTS: Final = 1_000
QUEUE_LIMIT: Final = 1_000
"""Messages that may wait for one client; more are lost in silence, as mosquitto does by default."""
RETRY_S: Final = 0.5


@dataclass(slots=True)
class TrafficCounts:
    """What the broker did so far, in messages."""

    published: int = 0
    delivered: int = 0
    overflowed: int = 0


class MemoryBroker:
    """Retained messages, wills, wildcards and clean sessions, as an MQTT broker has them.

    `now` is the clock in seconds, advanced by its owner. `latency_s` is the way of every message and of every
    acknowledgement. With `wildcards` false it is like RabbitMQ: a subscription with a wildcard gets no
    retained messages. `retained` and `counts` are there to look at.
    """

    def __init__(
        self,
        *,
        latency_s: float = 0.0,
        limits: BrokerLimits | None = None,
        queue_limit: int = QUEUE_LIMIT,
        wildcards: bool = True,
    ):
        self.now = 0.0
        self.wildcards = wildcards
        self.latency_s = latency_s
        self.limits = limits or BrokerLimits("5.0")
        self.queue_limit = queue_limit
        self.retained: dict[str, bytes] = {}
        self.counts = TrafficCounts()
        self.up = True
        self._clients: dict[str, MemoryBus] = {}
        self._joined = 0
        self._sequence = 0
        self._exact: dict[str, dict[MemoryBus, None]] = {}
        self._wild: dict[str, dict[MemoryBus, None]] = {}

    # -- for its owner

    def bus(self, client_id: str, will: Will | None = None) -> MemoryBus:
        """A party's bus; it connects at its first `poll`, and evicts another of the same id."""
        return MemoryBus(self, client_id, will)

    def cut(self, client_id: str, *, for_s: float = 0.0) -> None:
        """Break a client's link without a DISCONNECT: its will is published, what waited for it is lost.

        It connects again by itself at the first `poll` after `for_s` seconds; `math.inf`: never, it is dead.
        """
        if (client := self._clients.get(client_id)) is not None:
            error = BrokerUnreachable(f"the link of {client_id!r} was cut")
            self._part(client, error, for_s=for_s, will=True)

    def stop(self) -> None:
        """The broker goes down: every link breaks, no will is published, nobody can connect."""
        self.up = False
        for client in list(self._clients.values()):
            self._part(client, BrokerUnreachable("the broker went down"), for_s=0.0, will=False)

    def start(self) -> None:
        """The broker is back, with its retained messages."""
        self.up = True

    def forget(self) -> None:
        """Restart the broker from an empty disk: every link breaks, retained messages are gone."""
        self.stop()
        self.retained.clear()
        self.start()

    # -- for MemoryBus

    def join(self, bus: MemoryBus) -> None:
        """Accept a client; another of the same id must go, as brokers do."""
        if (other := self._clients.get(bus.client_id)) is not None:
            taken = BrokerRefused(f"another party connected as {bus.client_id!r} and took our place")
            self._part(other, taken, for_s=0.0, will=True)
        self._joined += 1
        bus.place = self._joined
        self._clients[bus.client_id] = bus
        for pattern in bus.patterns:
            self.listen(bus, pattern)

    def leave(self, bus: MemoryBus) -> None:
        """A clean disconnect: no will."""
        if self._clients.get(bus.client_id) is bus:
            del self._clients[bus.client_id]
            self._deafen(bus)

    def listen(self, bus: MemoryBus, pattern: str) -> None:
        """A connected client subscribes."""
        self._index(pattern).setdefault(pattern, {})[bus] = None

    def ignore(self, bus: MemoryBus, pattern: str) -> None:
        """It ends a subscription."""
        index = self._index(pattern)
        if (found := index.get(pattern)) is not None:
            found.pop(bus, None)
            if not found:
                del index[pattern]

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Hand a message to every client that subscribes to its topic, once each."""
        self.counts.published += 1
        if retain:
            if payload:
                self.retained[topic] = payload
            else:
                self.retained.pop(topic, None)
        found = dict.fromkeys(self._exact.get(topic, ()))
        for pattern, clients in self._wild.items():
            if matches(pattern, topic):
                found.update(clients)
        message = Received(topic, payload)
        for client in sorted(found, key=lambda client: client.place) if len(found) > 1 else list(found):
            self.deliver(client, message)

    def deliver(self, client: MemoryBus, message: Received) -> None:
        """Put a message into a client's queue."""
        if self._clients.get(client.client_id) is client:
            self.queue(client, message)

    def queue(self, client: MemoryBus, message: Received, *, late_s: float = 0.0, order: int = 0) -> None:
        """Queue a message for a client, `late_s` beyond its way, `order` places from its turn."""
        self._sequence += 1
        due = client.arrival(message, self.now) + late_s
        if client.put(due, self._sequence + order, message, self.queue_limit):
            self.counts.delivered += 1
        else:
            self.counts.overflowed += 1

    def kept(self, pattern: str) -> Iterable[tuple[str, bytes]]:
        """Retained messages that a new subscription gets."""
        if self._index(pattern) is self._exact:
            payload = self.retained.get(pattern)
            return [] if payload is None else [(pattern, payload)]
        if not self.wildcards:
            return []
        stem = pattern[: min(i for i in map(pattern.find, "+#") if i >= 0)].rpartition("/")[0]
        return [(t, p) for t, p in self.retained.items() if t.startswith(stem) and matches(pattern, t)]

    def _index(self, pattern: str) -> dict[str, dict[MemoryBus, None]]:
        return self._wild if "+" in pattern or "#" in pattern else self._exact

    def _deafen(self, bus: MemoryBus) -> None:
        for pattern in bus.patterns:
            self.ignore(bus, pattern)

    def _part(self, client: MemoryBus, error: BusError, *, for_s: float, will: bool) -> None:
        if self._clients.pop(client.client_id, None) is not None:
            self._deafen(client)
        last = client.lose(error, self.now + max(for_s, RETRY_S))
        if will and last is not None:
            self.publish(last.topic, last.payload, retain=True)


class MemoryBus:
    """One party's end of a `MemoryBroker`; see `apiary.bus.bus.Bus`."""

    def __init__(self, broker: MemoryBroker, client_id: str, will: Will | None):
        self.client_id = client_id
        self.place = 0
        """In the order of connects."""
        self._broker = broker
        self._will = will
        self._subscriptions: dict[str, None] = {}
        self._queue: list[tuple[float, int, int, Received]] = []
        self._unacknowledged: list[float] = []
        self._events: list[Event] = []
        self._connected = False
        self._closed = False
        self._retry_at = -math.inf
        self._count = 0

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and the link is up."""
        return self._connected

    @property
    def limits(self) -> BrokerLimits:
        """The broker's own limits."""
        return self._broker.limits

    @property
    def backlog(self) -> int:
        """Publishes with QoS 1 whose acknowledgement no `poll` has taken yet."""
        return len(self._unacknowledged)

    @property
    def patterns(self) -> list[str]:
        """What it subscribes to."""
        return list(self._subscriptions)

    def subscribe(self, pattern: str) -> None:
        """Subscribe, now and after every reconnect; a second time changes nothing."""
        if pattern not in self._subscriptions:
            self._subscriptions[pattern] = None
            if self._connected:
                self._broker.listen(self, pattern)
                self._send_retained(pattern)

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""
        if pattern in self._subscriptions:
            del self._subscriptions[pattern]
            self._broker.ignore(self, pattern)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message over; False, and nothing kept, while there is no connection."""
        if not self._connected:
            return False
        limit = self._broker.limits.max_packet_bytes
        if limit and len(payload) > limit:
            self._events.append(PublishRefused(topic, f"message of {len(payload)} bytes, at most {limit}"))
            return True
        self.transmit(topic, bytes(payload), qos=qos, retain=retain)
        return True

    def poll(self, timeout_s: float) -> list[Event]:
        """What has happened by the broker's clock; never waits."""
        now = self._broker.now
        if not self._connected and not self._closed and now >= self._retry_at and self._broker.up:
            self._broker.join(self)
            self._connected = True
            self._events.append(Connected(self._broker.limits))
            for pattern in self._subscriptions:
                self._send_retained(pattern)
        if self._unacknowledged:
            self._unacknowledged = [due for due in self._unacknowledged if due > now]
        events, self._events = self._events, []
        while self._queue and self._queue[0][0] <= now and len(events) < MAX_EVENTS:
            events.append(heapq.heappop(self._queue)[-1])
        return events

    def wake(self) -> None:
        """Nothing to do: `poll` never waits."""

    def close(self) -> None:
        """Disconnect; the will is not published."""
        self._broker.leave(self)
        self._closed = True
        self._connected = False

    # -- the way to the broker and back; a simulated link overrides these

    def transmit(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        """Send a message to the broker, and expect its acknowledgement."""
        if qos:
            self._unacknowledged.append(self._broker.now + self._broker.latency_s)
        self._broker.publish(topic, payload, retain=retain)

    def arrival(self, message: Received, now: float) -> float:
        """When a message that the broker has at `now` is here."""
        return now + self._broker.latency_s

    # -- for MemoryBroker

    def put(self, due: float, order: int, message: Received, limit: int) -> bool:
        """Queue a message; False where the queue is full."""
        if len(self._queue) >= limit:
            return False
        self._count += 1
        heapq.heappush(self._queue, (due, order, self._count, message))
        return True

    def lose(self, error: BusError, retry_at: float) -> Will | None:
        """The link is gone, and all that waited in it; gives the will."""
        self._connected = False
        self._queue.clear()
        self._unacknowledged.clear()
        self._retry_at = retry_at
        self._events.append(Disconnected(error, retry_at - self._broker.now))
        return self._will

    def _send_retained(self, pattern: str) -> None:
        for topic, payload in self._broker.kept(pattern):
            self._broker.deliver(self, Received(topic, payload, retained=True))
