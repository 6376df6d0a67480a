"""Parties of one process joined without a network, under a clock and faults that the test decides.

    broker = MemoryBroker(seed=1, faults=[Fault("drop", "apiary/+/node/+/offer", times=1)])
    node, coordinator = broker.bus("node-1"), broker.bus("coordinator")
    ...                                   # subscribe, publish, poll(0) each in turn
    broker.now += 5.0                     # time passes only here

The same seed and the same calls give the same run. Every message goes through the broker at once; a
subscriber sees it at the first `poll` after it is due. Nothing blocks: `poll` ignores its time-out.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

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


@dataclass(frozen=True, slots=True)
class LinkFault:
    """What goes wrong with deliveries on topics that `pattern` covers, to client `to` (None: anyone).

    drop: it never arrives, though its sender got an acknowledgement. duplicate: it arrives twice.
    reorder: it overtakes up to eight that wait before it. delay: it arrives up to `seconds` late.
    corrupt: one byte is changed. cut: the receiver's link breaks for `seconds`, the message with it.

    The first `skip` deliveries are spared, at most `times` are hit, each with `probability`.
    """

    kind: Literal["drop", "duplicate", "reorder", "delay", "corrupt", "cut"]
    pattern: str = "#"
    to: str | None = None
    probability: float = 1.0
    skip: int = 0
    times: float = math.inf
    seconds: float = 0.0


@dataclass(slots=True)
class TrafficCounts:
    """What the broker did so far, in messages."""

    published: int = 0
    delivered: int = 0
    overflowed: int = 0
    faults: dict[str, int] = field(default_factory=dict)


class MemoryBroker:
    """Retained messages, wills, wildcards and clean sessions, as an MQTT broker has them.

    `now` is the clock in seconds, advanced by the test. `latency_s` is the way of every message and of
    every acknowledgement. With `wildcards` false it is like RabbitMQ: a subscription with a wildcard gets no
    retained messages. `retained` and `counts` are there to look at.
    """

    def __init__(
        self,
        seed: int = 0,
        faults: Sequence[LinkFault] = (),
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
        self._random = random.Random(seed)
        self._faults: list[tuple[LinkFault, list[float]]] = []
        self._clients: dict[str, MemoryBus] = {}
        self._sequence = 0
        for fault in faults:
            self.script(fault)

    # -- for the test

    def bus(self, client_id: str, will: Will | None = None) -> MemoryBus:
        """A party's bus; it connects at its first `poll`, and evicts another of the same id."""
        return MemoryBus(self, client_id, will)

    def script(self, fault: LinkFault) -> None:
        """From now on this goes wrong too."""
        self._faults.append((fault, [fault.skip, fault.times]))

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self._faults.clear()

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
        self._clients[bus.client_id] = bus

    def leave(self, bus: MemoryBus) -> None:
        """A clean disconnect: no will."""
        if self._clients.get(bus.client_id) is bus:
            del self._clients[bus.client_id]

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Hand a message to every client that subscribes to its topic, once each."""
        self.counts.published += 1
        if retain:
            if payload:
                self.retained[topic] = payload
            else:
                self.retained.pop(topic, None)
        for client in list(self._clients.values()):
            if client.wants(topic):
                self.deliver(client, Received(topic, payload))

    def deliver(self, client: MemoryBus, message: Received) -> None:
        """Put a message into a client's queue, or let a fault have it."""
        if self._clients.get(client.client_id) is not client:
            return  # cut a moment ago, by a fault on this very message
        due, order, copies = self.now + self.latency_s, 0, 1
        for fault in self._struck(client.client_id, message.topic):
            match fault.kind:
                case "drop":
                    return
                case "cut":
                    self.cut(client.client_id, for_s=fault.seconds)
                    return
                case "duplicate":
                    copies += 1
                case "reorder":
                    order -= self._random.randint(1, 8)
                case "delay":
                    due += self._random.uniform(0.0, fault.seconds)
                case "corrupt":
                    message = Received(message.topic, self._spoil(message.payload), message.retained)
        for _ in range(copies):
            self._sequence += 1
            if not client.put(due, self._sequence + order, message, self.queue_limit):
                self.counts.overflowed += 1
            else:
                self.counts.delivered += 1

    def _struck(self, client_id: str, topic: str) -> list[LinkFault]:
        struck = []
        for fault, left in self._faults:
            if (fault.to is not None and fault.to != client_id) or not matches(fault.pattern, topic):
                continue
            if left[0] > 0:
                left[0] -= 1
            elif left[1] > 0 and self._random.random() < fault.probability:
                left[1] -= 1
                self.counts.faults[fault.kind] = self.counts.faults.get(fault.kind, 0) + 1
                struck.append(fault)
        return struck

    def _spoil(self, payload: bytes) -> bytes:
        if not payload:
            return b"?"
        at = self._random.randrange(len(payload))
        return payload[:at] + bytes([payload[at] ^ 0x55]) + payload[at + 1 :]

    def _part(self, client: MemoryBus, error: BusError, *, for_s: float, will: bool) -> None:
        self._clients.pop(client.client_id, None)
        last = client.lose(error, self.now + max(for_s, RETRY_S))
        if will and last is not None:
            self.publish(last.topic, last.payload, retain=True)


class MemoryBus:
    """One party's end of a `MemoryBroker`; see `apiary.bus.bus.Bus`."""

    def __init__(self, broker: MemoryBroker, client_id: str, will: Will | None):
        self.client_id = client_id
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

    def subscribe(self, pattern: str) -> None:
        """Subscribe, now and after every reconnect; a second time changes nothing."""
        if pattern not in self._subscriptions:
            self._subscriptions[pattern] = None
            if self._connected:
                self._send_retained(pattern)

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""
        self._subscriptions.pop(pattern, None)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message over; False, and nothing kept, while there is no connection."""
        if not self._connected:
            return False
        limit = self._broker.limits.max_packet_bytes
        if limit and len(payload) > limit:
            self._events.append(PublishRefused(topic, f"message of {len(payload)} bytes, at most {limit}"))
            return True
        if qos:
            self._unacknowledged.append(self._broker.now + self._broker.latency_s)
        self._broker.publish(topic, bytes(payload), retain=retain)
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

    # -- for MemoryBroker

    def wants(self, topic: str) -> bool:
        """Whether one of our subscriptions covers `topic`."""
        return any(matches(pattern, topic) for pattern in self._subscriptions)

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
        if not self._broker.wildcards and ("+" in pattern or "#" in pattern):
            return
        for topic, payload in list(self._broker.retained.items()):
            if matches(pattern, topic):
                self._broker.deliver(self, Received(topic, payload, retained=True))
