"""One connection to a broker, from CONNECT until it breaks, as the bus that renews it sees it."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from apiary.bus.bus import BrokerLimits, Event
from apiary.errors import BusError


@dataclass(slots=True)
class Notes:
    """Events of links that nobody has taken yet: a link writes notes, so that nothing runs inside it."""

    events: list[Event] = field(default_factory=list)
    event_bytes: int = 0
    handled: int = 0
    """Packets of any kind that were taken in, ever."""

    def take(self) -> list[Event]:
        """The events so far, which are forgotten here."""
        events, self.events = self.events, []
        self.event_bytes = 0
        return events


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a link needs of the bus."""

    notes: Notes
    up: Callable[[BrokerLimits], None]
    subscribed: Callable[[str], bool]
    """Whether a topic belongs to a subscription."""


class Link(Protocol):
    """A link that has ended is never used again. `failure` is why it ended, None while it has not."""

    failure: BusError | None
    connected: bool

    @property
    def backlog(self) -> int:
        """Publishes with QoS 1 that are not acknowledged."""

    @property
    def sock(self) -> socket.socket | None:
        """The socket under it."""

    @property
    def reads_ahead(self) -> bool:
        """Whether bytes wait to be read that the kernel will not announce."""

    @property
    def want_write(self) -> bool:
        """Whether something waits to be written."""

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> bool:
        """Hand a message over; False where it was not taken."""

    def subscribe(self, patterns: Sequence[str]) -> None:
        """Subscribe to all of these with QoS 1, in one packet."""

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""

    def read(self) -> bool:
        """Take in some packets that have arrived; whether more may wait."""

    def write(self) -> None:
        """Write what the socket takes."""

    def misc(self) -> None:
        """Signs of life; to be called about once a second."""

    def disconnect(self) -> None:
        """Begin a clean disconnect: the will is not published."""

    def drop(self) -> None:
        """Close the socket and forget what waited; no event follows."""
