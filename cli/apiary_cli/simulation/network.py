"""The virtual clock, and the broker and links that live by it: time jumps from event to event."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from apiary.bus.bus import Event, Received, Will
from apiary.bus.memory import MemoryBroker, MemoryBus

_QUEUE: Final = 1_000_000
"""Nothing overflows: what a real broker drops in silence its sender repeats, at a cost in time only."""
_HEADER_BYTES: Final = 60
"""TCP, IP and MQTT around one message, beside its topic."""
_IN_FLIGHT: Final = 2
"""As `RECEIVE_MAXIMUM` of a node: the broker sends the next once the one before last is acknowledged."""


@dataclass(frozen=True, slots=True)
class SimulatedLink:
    """A node's way to the broker; rates in bytes a second, `latency_s` one way."""

    latency_s: float
    up_bytes_s: float
    down_bytes_s: float


class VirtualNetwork(MemoryBroker):
    """A broker and everybody's clock. `at` plans, `advance` lets time pass."""

    def __init__(self) -> None:
        super().__init__(queue_limit=_QUEUE)
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._plans = 0

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Plan `act`, now at the earliest; of the same time in the order of planning."""
        self._plans += 1
        heapq.heappush(self._planned, (max(when, self.now), self._plans, act))

    def advance(self, until: float) -> bool:
        """Do the next thing that is due by `until`; False, and it is `until`, where there is none."""
        if self._planned and self._planned[0][0] <= until:
            self.now, _, act = heapq.heappop(self._planned)
            act()
            return True
        self.now = max(self.now, until)
        return False

    def server_bus(self, client_id: str, will: Will | None) -> ServerBus:
        """The coordinator's end: it waits by the virtual clock."""
        return ServerBus(self, client_id, will)

    def node_bus(
        self, client_id: str, will: Will | None, link: SimulatedLink, wake: Callable[[], None]
    ) -> NodeBus:
        """A node's end of its link; `wake` is called when a message is here."""
        return NodeBus(self, client_id, will, link, wake)


class ServerBus(MemoryBus):
    """Beside the broker, without a link of its own. `poll` lets the fleet live while it waits."""

    def __init__(self, network: VirtualNetwork, client_id: str, will: Will | None):
        super().__init__(network, client_id, will)
        self._network = network
        self._woken = False

    def poll(self, timeout_s: float) -> list[Event]:
        """What has happened, as soon as something has, or after `timeout_s` of virtual time."""
        network, until = self._network, self._network.now + timeout_s
        waits_for_room = bool(self._unacknowledged)
        while not (events := super().poll(0)):
            if self._woken or network.now >= until or (waits_for_room and not self._unacknowledged):
                break
            due = min([until, *self._unacknowledged[:1], *(q[0] for q in self._queue[:1])])
            network.advance(due)
        self._woken = False
        return events

    def wake(self) -> None:
        """Let the `poll` that waits return."""
        self._woken = True


class NodeBus(MemoryBus):
    """A node's end: messages queue on its link, one after another in each direction."""

    def __init__(
        self,
        network: VirtualNetwork,
        client_id: str,
        will: Will | None,
        link: SimulatedLink,
        wake: Callable[[], None],
    ):
        super().__init__(network, client_id, will)
        self._network = network
        self._link = link
        self._wake = wake
        self._up_free = self._down_free = 0.0
        self._acknowledged = [0.0] * _IN_FLIGHT

    @property
    def next_room(self) -> float | None:
        """When the next acknowledgement comes; None where none is awaited."""
        return min(self._unacknowledged, default=None)

    def transmit(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        """Send it over the link; it reaches the broker once it is through."""
        network, link, connect = self._network, self._link, self.place
        size = len(payload) + len(topic) + _HEADER_BYTES
        self._up_free = max(network.now, self._up_free) + size / link.up_bytes_s
        there = self._up_free + link.latency_s
        if qos:
            self._unacknowledged.append(there + link.latency_s)

        def arrives() -> None:
            if self.connected and self.place == connect:  # else it was lost with the link
                network.publish(topic, payload, retain=retain)

        network.at(there, arrives)

    def arrival(self, message: Received, now: float) -> float:
        """After what is on the link already, and after the acknowledgement that the broker waits for."""
        size = len(message.payload) + len(message.topic) + _HEADER_BYTES
        begins = max(now, self._down_free, self._acknowledged[0])
        self._down_free = begins + size / self._link.down_bytes_s
        there = self._down_free + self._link.latency_s
        self._acknowledged = [*self._acknowledged[1:], there + self._link.latency_s]
        return there

    def vanish(self, away_s: float) -> None:
        """The link breaks; the node connects again at its first `poll` after `away_s`."""
        self._network.cut(self.client_id, for_s=away_s)
        self._up_free = self._down_free = 0.0
        self._acknowledged = [0.0] * _IN_FLIGHT

    def put(self, due: float, order: int, message: Received, limit: int) -> bool:
        """Queue a message, and wake the node when it is here."""
        taken = super().put(due, order, message, limit)
        if taken:
            self._network.at(due, self._wake)
        return taken
