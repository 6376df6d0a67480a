"""The bus over a real broker: one link after another, each over a fresh socket.

Each connection starts clean; when one breaks, what it still held is dropped with it, and the next attempt
waits a jittered, doubling while. An attempt passes over every address of the broker (`route.py`).
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Final

from apiary.bus.bus import BrokerLimits, Connected, Disconnected, Event, PublishRefused, Will, matches
from apiary.bus.dial import Dial, Tls
from apiary.bus.link import ConnectOptions, Hooks, Link, Notes, Protocol
from apiary.bus.refusals import ShutOut, VersionRefused, WindowRefused, none_left, unreachable
from apiary.bus.route import Endpoint, Route
from apiary.bus.watch import READ, WRITE, Watch
from apiary.errors import BrokerUnreachable, BusError
from apiary.settings import BrokerSettings, password

MAX_EVENTS: Final = 1_000
MAX_BYTES: Final = 4 * 2**20
"""What one `poll` takes in: a node that writes chunks to its disk must not hold a whole model besides."""
FIRST_RETRY_S: Final = 0.5
STEADY_S: Final = 10.0
"""A link that held this long was good: the next break starts with the shortest pause again."""
SHORT_LINKS: Final = 3
"""After so many links in a row that broke before `STEADY_S`, a second party with our id is suspected."""
DRAIN_S: Final = 2.0
"""`close` waits this long for acknowledgements of what was published last."""
_LEAST_SHARE: Final = 0.1
"""Of `connect_timeout_s`, for each address, however many there are and however long names took."""
_MISC_S: Final = 1.0
_PACKET_OVERHEAD: Final = 16
_SUBSCRIBE_BATCH: Final = 50

log = logging.getLogger(__name__)


class MqttBus:
    """One party's connection to a broker; see `apiary.bus.bus.Bus`. No threads: `poll` does everything.

    `receive_maximum`: what the broker may send ahead of our acknowledgement (MQTT 5 only; 0: its own limit).
    It copies each such message, while one that waits is held once for all who get it. `route` replaces the
    addresses of the settings. Raises SettingsError at
    once where a password or certificate file cannot be read.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        client_id: str,
        will: Will | None = None,
        *,
        receive_maximum: int = 0,
        route: Route | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ):
        self._settings = broker
        self._options = ConnectOptions(broker, client_id, password(broker), will, receive_maximum)
        self._clock = clock
        self._jitter = jitter or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._tls = Tls(broker)
        self._route = route or Route(broker.addresses, client_id)
        self._watch = Watch()
        self._subscriptions: dict[str, None] = {}
        self._notes = Notes()
        self._hooks = Hooks(self._notes, self._up, self._subscribed)

        self._dial: Dial | None = None
        self._link: Link | None = None
        self._limits = BrokerLimits("")
        self._first_protocol: Protocol = "3.1.1" if broker.protocol == "3.1.1" else "5"
        self._protocol = self._first_protocol
        self._warned = False
        self._window = broker.inflight

        self._endpoint: Endpoint | None = None
        self._again = False
        """Whether `_endpoint` is tried once more: in another version, or with another window."""
        self._cut: ShutOut | None = None
        """How it closed the connection on a CONNECT of version 5."""
        self._failures: list[BusError] = []
        """Of this pass over the addresses."""
        self._pass_ends: float | None = None

        self._deadline = 0.0
        self._since: float | None = None
        self._misc_at = 0.0
        self._retry_at = clock()
        self._attempts = 0
        self._short_links = 0
        self._closed = False

    # -- what the services use

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and the link is up."""
        return self._link is not None and self._link.connected

    @property
    def backlog(self) -> int:
        """Publishes with QoS 1 that the broker has not acknowledged yet."""
        return self._link.backlog if self._link is not None else 0

    @property
    def limits(self) -> BrokerLimits:
        """The broker's limits at the latest connect."""
        return self._limits

    def subscribe(self, pattern: str) -> None:
        """Subscribe with QoS 1, now and after every reconnect; a second time changes nothing."""
        if pattern not in self._subscriptions:
            self._subscriptions[pattern] = None
            if self._link is not None and self._link.connected:
                self._link.subscribe([pattern])

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""
        if pattern in self._subscriptions:
            del self._subscriptions[pattern]
            if self._link is not None and self._link.connected:
                self._link.unsubscribe(pattern)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message over; False, and nothing kept, while there is no connection.

        A message over the broker's announced maximum is not sent, since the broker would cut the link:
        True is returned and `PublishRefused` comes with the next `poll`, as for any other refusal.
        """
        link = self._link
        if link is None or not link.connected:
            return False
        limit = self._limits.max_packet_bytes
        if limit and len(payload) + len(topic) + _PACKET_OVERHEAD > limit:
            reason = f"message of {len(payload)} bytes, the broker takes packets of at most {limit}"
            self._notes.events.append(PublishRefused(topic, reason))
            return True
        return link.publish(topic, payload, qos, retain)

    def poll(self, timeout_s: float) -> list[Event]:
        """Do what the network allows and return what happened, within `timeout_s`; see `Bus.poll`."""
        if self._closed:
            return []
        notes = self._notes
        end = self._clock() + timeout_s
        handled = notes.handled
        while True:
            now = self._clock()
            self._advance(now)
            wait = min(end, self._next_timer(now)) - now
            if notes.events or notes.handled != handled or self._reading_ahead():
                wait = 0.0
            woken = self._wait(max(0.0, wait))
            if notes.events or notes.handled != handled or woken or self._clock() >= end:
                return notes.take()

    def fileno(self) -> int:
        """A descriptor that turns readable when `poll` has something to do: for one loop over many buses.

        Timers do not show there, `due` names the next. Only where selectors are descriptors (epoll, kqueue).
        """
        return self._watch.fileno()

    def due(self) -> float:
        """When, on this bus's clock, `poll` is due even if `fileno` stays quiet; read after each `poll`."""
        self._watch_link()
        if self._notes.events or self._reading_ahead() or self._failed():
            return self._clock()
        return self._next_timer(self._clock())

    def wake(self) -> None:
        """Make a `poll` that is waiting return; for other threads and signal handlers."""
        self._watch.wake()

    def close(self) -> None:
        """Disconnect, after a short wait for what was published last, and free the connection."""
        if self._closed:
            return
        self._closed = True
        end = self._clock() + DRAIN_S
        while self.connected and self.backlog and self._clock() < end:
            self._wait(min(0.1, end - self._clock()))
            self._notes.take()
        link = self._link
        if link is not None and link.connected:
            link.disconnect()
            while link.want_write and link.sock and self._clock() < end:
                self._wait(min(0.1, end - self._clock()))
                self._notes.take()
        self._drop()
        self._watch.close()

    # -- connecting

    def _advance(self, now: float) -> None:
        """Start or continue an attempt, notice failures and serve the link's timers."""
        self._check(now)
        if self._closed:
            return
        if self._link is not None:
            if not self._link.connected and now >= self._deadline:
                why = (
                    "connected, but nothing answered MQTT's CONNECT within broker.connect_timeout_s: is that "
                    "port a broker's, and does it expect TLS? (One that knows MQTT 3.1.1 only should say so; "
                    'where it does not, set broker.protocol = "3.1.1".)'
                )
                self._fail(BrokerUnreachable(f"{self._where}: {why}"), now)
            elif self._link.connected and now >= self._misc_at:
                self._misc_at = now + _MISC_S
                self._link.misc()
                self._check(now)
            return
        if self._dial is None and now >= self._retry_at:
            self._begin(now)
        if self._dial is not None:
            self._step(self._dial, now)

    def _begin(self, now: float) -> None:
        """Dial the next address. One that is silent leaves time for those after it."""
        timeout_s = self._settings.connect_timeout_s
        if self._pass_ends is None:
            self._pass_ends = now + timeout_s
        try:
            if not self._again or self._endpoint is None:
                self._protocol, self._cut = self._first_protocol, None
                self._endpoint = self._route.next()
        except BusError as e:
            self._fail(e, now)
            return
        self._again = False
        share = (self._pass_ends - now) / (self._route.left + 1)
        self._deadline = now + max(share, timeout_s * _LEAST_SHARE)
        self._dial = Dial(self._endpoint, self._tls.context(), self._deadline)

    @property
    def _where(self) -> str:
        return f"broker {self._endpoint.address if self._endpoint else self._settings.names}"

    def _step(self, dial: Dial, now: float) -> None:
        try:
            sock = dial.step(now)
        except BusError as e:
            self._fail(e, now)
            return
        if sock is None:
            self._watch.set(dial.sock, dial.want)
            return
        self._dial = None
        self._watch.set(None)
        link = Link(
            sock,
            dial.endpoint.address,
            self._options,
            self._hooks,
            protocol=self._protocol,
            window=self._window,
        )
        link.connect()
        self._link = link

    def _up(self, limits: BrokerLimits) -> None:
        """The broker accepted a link."""
        self._limits = limits
        if limits.protocol == "3.1.1" and self._settings.protocol == "auto" and not self._warned:
            self._warned = True
            log.warning("%s speaks MQTT 3.1.1 only: what it refuses is lost without a word", self._where)
        self._since = now = self._clock()
        self._pass_ends = None
        self._failures.clear()
        self._misc_at = now + _MISC_S
        self._notes.events.append(Connected(limits))
        patterns = list(self._subscriptions)
        assert self._link is not None  # noqa: S101 - it is the one that speaks
        for i in range(0, len(patterns), _SUBSCRIBE_BATCH):
            self._link.subscribe(patterns[i : i + _SUBSCRIBE_BATCH])

    def _failed(self) -> bool:
        return self._link is not None and self._link.failure is not None

    def _check(self, now: float) -> None:
        if self._link is not None and self._link.failure is not None:
            self._fail(self._link.failure, now)

    def _fail(self, error: BusError, now: float) -> None:
        """End this attempt or link: go on to the next address at once, or report it and plan a pass."""
        since, self._since = self._since, None
        steady = since is not None and now - since >= STEADY_S
        if steady:
            self._attempts = self._short_links = 0
        elif since is not None:
            self._short_links += 1
            if self._short_links >= SHORT_LINKS and isinstance(error, BrokerUnreachable):
                # mosquitto 2.0 closes the older of two parties with one id without the reason code.
                error = unreachable(
                    self._where,
                    f"the link broke {self._short_links} times shortly after connecting; does another party "
                    f"use the id {self._options.client_id!r}?",
                )
        self._drop()
        if isinstance(error, WindowRefused):
            self._window = error.receive_maximum
            self._again, self._retry_at = True, now
            return
        if since is None:
            if self._other_version(error):
                self._again, self._retry_at = True, now
                return
            # 3.1.1 did not help: what came of 5 is the reason.
            self._failures.append(self._cut or error if isinstance(error, ShutOut) else error)
            if self._route.left:
                self._retry_at = now
                return
            error = none_left(self._failures)
        self._failures.clear()
        self._pass_ends = None
        if since is None or steady:
            self._route.begin()  # else with the next: what takes us and drops us is passed over too
        pause = min(self._settings.retry_max_s, FIRST_RETRY_S * 2.0 ** min(self._attempts, 30))
        pause *= self._jitter.uniform(0.5, 1.0)
        self._attempts += 1
        self._retry_at = now + pause
        self._notes.events.append(Disconnected(error, pause))

    def _other_version(self, error: BusError) -> bool:
        """Whether this address is to be tried once more at once, in version 5 or 3.1.1.

        A broker may close the connection on a CONNECT of version 5 (RabbitMQ 3.10 does, measured). One that
        is being stopped does so too, and 3.1.1 is worse for the whole link: so only the second time in a row.
        """
        if self._settings.protocol != "auto" or self._protocol != "5":
            return False
        if isinstance(error, ShutOut) and self._cut is None:
            self._cut = error
            return True
        if isinstance(error, ShutOut | VersionRefused):
            self._protocol = "3.1.1"
            return True
        return False

    def _drop(self) -> None:
        """Forget the connection and everything that waited in it."""
        self._watch.set(None)
        if self._dial is not None:
            self._dial.close()
            self._dial = None
        link, self._link = self._link, None
        if link is not None:
            link.drop()

    # -- waiting

    def _next_timer(self, now: float) -> float:
        if self._link is not None:
            return self._misc_at if self._link.connected else self._deadline
        return self._deadline if self._dial is not None else max(now, self._retry_at)

    def _reading_ahead(self) -> bool:
        return self._link is not None and self._link.reads_ahead

    def _subscribed(self, topic: str) -> bool:
        return any(matches(p, topic) for p in self._subscriptions)

    def _wait(self, timeout_s: float) -> bool:
        """Wait for the network and serve it; True where `wake` ended the wait."""
        link = self._link
        self._watch_link()
        if self._failed():
            return False
        ready, woken = self._watch.wait(timeout_s)
        if link is not None:
            if ready & WRITE:
                link.write()
            if ready & READ or link.reads_ahead:
                self._read(link)
                if link.want_write:
                    link.write()  # what was noted: subscriptions, acknowledgements
        return woken

    def _read(self, link: Link) -> None:
        """Take what has arrived, up to the bounds of one `poll`."""
        notes = self._notes
        last = notes.handled + MAX_EVENTS
        while link.read() and link.failure is None and notes.handled < last and notes.event_bytes < MAX_BYTES:
            pass

    def _watch_link(self) -> None:
        """Write what waits, then wait for what the link waits for: to read always, to write where it must."""
        link = self._link
        if link is not None:
            if link.want_write:
                link.write()
            self._watch.set(link.sock, READ | (WRITE if link.want_write else 0))
