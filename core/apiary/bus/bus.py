"""What the services need of a message bus. One thread drives it: `poll` does all its work.

`bus/mqtt.py` speaks to a broker; `bus/memory.py` joins parties in one process.
"""

from dataclasses import dataclass
from typing import Protocol

from apiary.errors import BusError


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """The broker's limits at connect; zero: none."""

    protocol: str
    """`5.0` or `3.1.1`."""
    max_packet_bytes: int = 0
    receive_maximum: int = 0


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted us. The bus restores subscriptions; the caller publishes its retained state."""

    limits: BrokerLimits


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link broke, or an attempt failed; the bus tries again by itself after `retry_s`."""

    error: BusError
    retry_s: float


@dataclass(frozen=True, slots=True)
class Received:
    """A message for one of our subscriptions."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """The broker refused a publish or a subscription (MQTT 5: not authorized, packet too large, quota)."""

    topic: str
    reason: str


Event = Connected | Disconnected | Received | PublishRefused


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained and with QoS 1, when we vanish."""

    topic: str
    payload: bytes


class Bus(Protocol):
    """A connection that keeps itself up. All methods but `wake` belong to one thread."""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and the link is up."""

    @property
    def backlog(self) -> int:
        """Publishes with QoS 1 that the broker has not acknowledged yet."""

    @property
    def limits(self) -> BrokerLimits:
        """The broker's limits at the latest connect."""

    def subscribe(self, pattern: str) -> None:
        """Subscribe with QoS 1, now and after every reconnect."""

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message over; False, and nothing kept, while there is no connection.

        What was handed over and not acknowledged when a link broke is dropped: whoever needs an answer
        asks again, so nothing old floods a link that has just come back.
        """

    def poll(self, timeout_s: float) -> list[Event]:
        """Do what the network allows and return what happened, within `timeout_s`; connects by itself.

        Returns early, perhaps with nothing, when acknowledgements made room for more publishes. Takes at
        most some 1,000 messages or 4 MB from the network; the rest waits in the kernel, which slows the
        broker down. Call it at least once a second, for the signs of life that the broker expects.
        """

    def wake(self) -> None:
        """Make a `poll` that is waiting return; for other threads."""

    def close(self) -> None:
        """Disconnect cleanly (the will is not published) and free the connection."""


def matches(pattern: str, topic: str) -> bool:
    """Whether a message on `topic` belongs to the subscription `pattern` (`+` one level, `#` the rest).

    MQTT 5, section 4.7.
    """
    if pattern == topic:
        return True
    if topic.startswith("$") and pattern[:1] in "+#":
        return False  # topics of the broker's own are not part of a wildcard at the root [MQTT-4.7.2-1]
    levels = topic.split("/")
    wanted = pattern.split("/")
    for i, want in enumerate(wanted):
        if want == "#":
            return True  # covers the parent level too: `a/#` matches `a`
        if i >= len(levels) or want not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)
