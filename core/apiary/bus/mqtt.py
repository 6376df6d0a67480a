"""The bus over a real broker: paho-mqtt without its threads, one fresh client per connection.

MQTT 5, or 3.1.1 where the broker refuses 5. Each connection starts clean; when one breaks, what paho
still held is dropped with its client, and the next attempt waits a jittered, doubling while.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from apiary.bus.bus import Connected, Disconnected, Event, Limits, Received, Refused, Will
from apiary.bus.dial import HINT, Dial, tls_context
from apiary.bus.patterns import matches
from apiary.errors import BrokerRefused, BrokerUnreachable, BusError
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
_MISC_S: Final = 1.0
_PACKET_OVERHEAD: Final = 16
_SUBSCRIBE_BATCH: Final = 50
_V5: Final = MQTTProtocolVersion.MQTTv5
_V311: Final = MQTTProtocolVersion.MQTTv311

# Reason codes of MQTT 5, section 2.4; paho translates those of 3.1.1.
_UNSPECIFIED: Final = 0x80
_UNSUPPORTED_VERSION: Final = 0x84
_SESSION_TAKEN_OVER: Final = 0x8E
_PACKET_TOO_LARGE: Final = 0x95
_GOING_AWAY: Final = {0x00, 0x8B, 0x98}
"""Normal, server shutting down, administrative action: it will be back."""
_CONNACK_HINTS: Final = {
    0x85: "this party's id is not one the broker takes: check edge.node_id",
    0x86: "check broker.username and broker.password (or broker.password_file)",
    0x87: "check broker.username and its password, and the broker's access lists",
    0x8A: "the broker has banned this party",
    0x8C: "check broker.tls_cert and broker.tls_key",
}

log = logging.getLogger(__name__)


class _VersionRefused(BrokerRefused):
    """The broker does not speak the version of MQTT that was asked for."""


class _ClosedEarly(BrokerUnreachable):
    """The broker closed the connection before it answered CONNECT, as some do that know only 3.1.1."""


class _NoAnswer(BrokerUnreachable):
    """Connected, but CONNECT was not answered: amqtt waits for more when version 5 carries a will."""


class _WindowRefused(BusError):  # noqa: N818
    """Connect once more at once: the window must shrink to what the broker announced."""


class _Client(paho.Client):
    """paho over a socket that is connected already, because paho's own connecting blocks."""

    def __init__(self, sock: socket.socket, client_id: str, protocol: MQTTProtocolVersion):
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if protocol == _V5 else True,
            protocol=protocol,
            # Otherwise paho goes down to MQTT 3.1 by itself, and blocks.
            reconnect_on_failure=False,
        )
        self._ready_sock = sock

    def _create_socket(self) -> socket.socket:
        return self._ready_sock


class MqttBus:
    """One party's connection to a broker; see `apiary.bus.bus.Bus`. No threads: `poll` does everything.

    `receive_maximum`: what the broker may send ahead of our acknowledgement (MQTT 5 only; 0: its own limit).
    It copies each such message, while one that waits is held once for all who get it. Raises SettingsError at
    once where a password or certificate file cannot be read.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        client_id: str,
        will: Will | None = None,
        *,
        receive_maximum: int = 0,
        clock: Callable[[], float] = time.monotonic,
        jitter: random.Random | None = None,
    ):
        self._settings = broker
        self._client_id = client_id
        self._will = will
        self._receive_maximum = receive_maximum
        self._clock = clock
        self._jitter = jitter or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._password = password(broker)
        self._tls = tls_context(broker)
        self._where = f"broker {broker.host}:{broker.port}"

        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = socket.socketpair()
        for end in (self._wake_r, self._wake_w):
            end.setblocking(False)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        self._watched: socket.socket | None = None
        self._watched_for = 0

        self._subscriptions: dict[str, None] = {}
        self._events: list[Event] = []
        self._event_bytes = 0
        self._handled = 0

        self._dial: Dial | None = None
        self._client: _Client | None = None
        self._connected = False
        self._limits = Limits("")
        self._protocol = _V311 if broker.protocol == "3.1.1" else _V5
        self._warned = False
        self._window = broker.inflight
        self._failure: BusError | None = None
        self._outgoing: dict[int, str] = {}
        self._subscribing: dict[int, list[str]] = {}

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
        return self._connected

    @property
    def backlog(self) -> int:
        """Publishes with QoS 1 that the broker has not acknowledged yet."""
        return len(self._outgoing)

    @property
    def limits(self) -> Limits:
        """What the broker said at the latest connect."""
        return self._limits

    def subscribe(self, pattern: str) -> None:
        """Subscribe with QoS 1, now and after every reconnect; a second time changes nothing."""
        if pattern not in self._subscriptions:
            self._subscriptions[pattern] = None
            if self._connected:
                self._send_subscribe([pattern])

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""
        if pattern in self._subscriptions:
            del self._subscriptions[pattern]
            if self._connected and self._client is not None:
                self._client.unsubscribe(pattern)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message over; False, and nothing kept, while there is no connection.

        A message over the broker's announced maximum is not sent, since the broker would cut the link:
        True is returned and `Refused` comes with the next `poll`, as for any other refusal.
        """
        client = self._client
        if not self._connected or client is None:
            return False
        limit = self._limits.max_packet_bytes
        if limit and len(payload) + len(topic) + _PACKET_OVERHEAD > limit:
            reason = f"message of {len(payload)} bytes, the broker takes packets of at most {limit}"
            self._events.append(Refused(topic, reason))
            return True
        info = client.publish(topic, payload, qos, retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS or not self._connected:
            return False
        if qos:
            self._outgoing[info.mid] = topic
        return True

    def poll(self, timeout_s: float) -> list[Event]:
        """Do what the network allows and return what happened, within `timeout_s`; see `Bus.poll`."""
        if self._closed:
            return []
        end = self._clock() + timeout_s
        handled = self._handled
        while True:
            now = self._clock()
            self._advance(now)
            wait = min(end, self._next_timer(now)) - now
            if self._events or self._handled != handled or self._reading_ahead():
                wait = 0.0
            woken = self._wait(max(0.0, wait))
            if self._events or self._handled != handled or woken or self._clock() >= end:
                return self._take()

    def fileno(self) -> int:
        """A descriptor that turns readable when `poll` has something to do: for one loop over many buses.

        Timers do not show there, `due` names the next. Only where selectors are descriptors (epoll, kqueue).
        """
        return self._selector.fileno()

    def due(self) -> float:
        """When, on this bus's clock, `poll` is due even if `fileno` stays quiet; asked after each `poll`."""
        self._watch_client()
        if self._events or self._reading_ahead() or self._failure is not None:
            return self._clock()
        return self._next_timer(self._clock())

    def wake(self) -> None:
        """Make a `poll` that is waiting return; for other threads and signal handlers."""
        with contextlib.suppress(BlockingIOError):  # full of wakes already
            self._wake_w.send(b"\0")

    def close(self) -> None:
        """Say goodbye, after a short wait for what was published last, and free the connection."""
        if self._closed:
            return
        self._closed = True
        end = self._clock() + DRAIN_S
        while self._connected and self._outgoing and self._clock() < end:
            self._wait(min(0.1, end - self._clock()))
            self._take()
        if self._client is not None and self._connected:
            self._client.disconnect()
            while self._client.want_write() and self._client.socket() and self._clock() < end:
                self._wait(min(0.1, end - self._clock()))
                self._take()
        self._drop()
        self._selector.close()
        self._wake_r.close()
        self._wake_w.close()

    # -- connecting

    def _advance(self, now: float) -> None:
        """Start or continue an attempt, notice failures and run paho's timers."""
        if self._failure is not None:
            self._fail(self._failure, now)
        if self._closed:
            return
        if self._client is not None:
            if not self._connected and now >= self._deadline:
                self._fail(
                    _NoAnswer(
                        f"{self._where}: connected, but nothing answered MQTT's CONNECT within "
                        "broker.connect_timeout_s: is that port a broker's, and does it expect TLS?"
                    ),
                    now,
                )
            elif self._connected and now >= self._misc_at:
                self._misc_at = now + _MISC_S
                self._client.loop_misc()
                if self._failure is not None:
                    self._fail(self._failure, now)
            return
        if self._dial is None and now >= self._retry_at:
            s = self._settings
            # Where 3.1.1 may have to be tried too, each has half of the time.
            share = 0.5 if s.protocol == "auto" else 1.0
            self._deadline = now + s.connect_timeout_s * share
            self._dial = Dial(s.host, s.port, self._tls, self._deadline)
        if self._dial is not None:
            self._step(self._dial, now)

    def _step(self, dial: Dial, now: float) -> None:
        try:
            sock = dial.step(now)
        except BusError as e:
            self._fail(e, now)
            return
        if sock is None:
            self._watch(dial.sock, dial.want)
            return
        self._dial = None
        self._hand_over(sock)

    def _hand_over(self, sock: socket.socket) -> None:
        """Give a connected socket to a fresh paho client and send CONNECT."""
        s = self._settings
        self._watch(None, 0)
        client = self._client = _Client(sock, self._client_id, self._protocol)
        client.max_inflight_messages_set(self._window)
        client.max_queued_messages_set(0)
        if s.username is not None or self._password is not None:
            client.username_pw_set(s.username or "", self._password)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        if self._protocol == _V5:
            properties = None
            if self._receive_maximum:
                # amqtt takes properties for the client id and waits for the rest of it, as it does with a
                # will: 3.1.1 is tried then.
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it so
                properties.ReceiveMaximum = self._receive_maximum
            client.connect(s.host, s.port, s.keepalive_s, clean_start=True, properties=properties)
        else:
            client.connect(s.host, s.port, s.keepalive_s)

    def _fail(self, error: BusError, now: float) -> None:
        """End this attempt or link: report it and plan the next attempt, or go down to 3.1.1 at once."""
        since, self._since = self._since, None
        if since is not None and now - since >= STEADY_S:
            self._attempts = self._short_links = 0
        elif since is not None:
            self._short_links += 1
            if self._short_links >= SHORT_LINKS and isinstance(error, BrokerUnreachable):
                # mosquitto 2.0 closes the older of two parties with one id without the reason code.
                error = self._unreachable(
                    f"the link broke {self._short_links} times shortly after connecting; does another party "
                    f"use the id {self._client_id!r}?"
                )
        old_protocol = self._protocol
        self._drop()
        if isinstance(error, _WindowRefused):
            self._retry_at = now
            return
        if self._settings.protocol == "auto":
            # Brokers without MQTT 5 answer "unsupported version" or just close; after a link was up, or a
            # 3.1.1 attempt failed too, 5 is tried first again, because the broker may have been replaced.
            self._protocol = _V5
            if old_protocol == _V5 and isinstance(error, _VersionRefused | _ClosedEarly | _NoAnswer):
                self._protocol = _V311
                self._retry_at = now
                return
        pause = min(self._settings.retry_max_s, FIRST_RETRY_S * 2.0 ** min(self._attempts, 30))
        pause *= self._jitter.uniform(0.5, 1.0)
        self._attempts += 1
        self._retry_at = now + pause
        self._events.append(Disconnected(error, pause))

    def _drop(self) -> None:
        """Forget the connection and everything that waited in it."""
        self._connected = False
        self._failure = None
        self._watch(None, 0)
        if self._dial is not None:
            self._dial.close()
            self._dial = None
        client, self._client = self._client, None
        if client is not None:
            client.on_disconnect = None
            sock = client.socket()
            if sock is not None:
                sock.close()
        self._outgoing.clear()
        self._subscribing.clear()

    # -- waiting

    def _next_timer(self, now: float) -> float:
        if self._client is not None:
            return self._misc_at if self._connected else self._deadline
        return self._deadline if self._dial is not None else max(now, self._retry_at)

    def _reading_ahead(self) -> bool:
        """Whether TLS holds decrypted bytes that the kernel will not announce."""
        sock = self._client.socket() if self._client is not None else None
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _wait(self, timeout: float) -> bool:
        """Wait for the network and serve it; True where `wake` ended the wait."""
        client = self._client
        self._watch_client()
        woken = False
        ready = 0
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._wake_r:
                woken = True
                with contextlib.suppress(BlockingIOError):
                    while self._wake_r.recv(4096):
                        pass
            else:
                ready |= mask
        if client is not None and client is self._client:
            if ready & selectors.EVENT_WRITE:
                client.loop_write()
            if ready & selectors.EVENT_READ or self._reading_ahead():
                self._read(client)
                if client is self._client and client.want_write():
                    client.loop_write()  # what callbacks queued: subscriptions, acknowledgements
        return woken

    def _read(self, client: _Client) -> None:
        """Take what has arrived, up to the bounds of one `poll`."""
        sock = client.socket()
        # paho acknowledges each message by a packet of its own; corked, they leave together, and the broker
        # is not woken for each of them.
        _cork(sock, on=True)
        try:
            self._read_on(client)
        finally:
            _cork(sock, on=False)

    def _read_on(self, client: _Client) -> None:
        last = self._handled + MAX_EVENTS
        while self._failure is None and self._handled < last and self._event_bytes < MAX_BYTES:
            before = self._handled
            if client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS and self._failure is None:
                self._failure = self._unreachable("the link broke")
            if self._handled == before:
                return

    def _watch_client(self) -> None:
        """Wait for what the client waits for: to read always, to write where it holds something back."""
        if self._client is not None:
            sock = self._client.socket()
            want = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
            self._watch(sock if isinstance(sock, socket.socket) else None, want)

    def _watch(self, sock: socket.socket | None, want: int) -> None:
        """Have the selector watch this socket alone, beside the waking one."""
        if sock is self._watched:
            if sock is not None and want != self._watched_for:
                self._selector.modify(sock, want)
                self._watched_for = want
            return
        if self._watched is not None:
            with contextlib.suppress(KeyError, ValueError):  # closed already: epoll has forgotten it
                self._selector.unregister(self._watched)
        self._watched, self._watched_for = sock, want
        if sock is not None:
            self._selector.register(sock, want)

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        self._event_bytes = 0
        return events

    # -- what paho tells; each runs within `_wait`, `_advance` or `publish`, and only takes notes

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._handled += 1
        if reason.is_failure:
            self._failure = self._refused(reason)
            return
        v5 = self._protocol == _V5
        self._limits = Limits(
            "5.0" if v5 else "3.1.1",
            getattr(properties, "MaximumPacketSize", 0),
            getattr(properties, "ReceiveMaximum", 0),
        )
        if 0 < self._limits.receive_maximum < self._window:
            # paho takes a new window only before it connects, so it connects once more.
            self._window = self._limits.receive_maximum
            self._failure = _WindowRefused(f"{self._where}: receive maximum {self._window}")
            return
        if not v5 and self._settings.protocol == "auto" and not self._warned:
            self._warned = True
            log.warning("%s speaks MQTT 3.1.1 only: what it refuses is lost without a word", self._where)
        self._connected = True
        self._since = now = self._clock()
        self._misc_at = now + _MISC_S
        self._events.append(Connected(self._limits))
        patterns = list(self._subscriptions)
        for i in range(0, len(patterns), _SUBSCRIBE_BATCH):
            self._send_subscribe(patterns[i : i + _SUBSCRIBE_BATCH])

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self._failure is None:
            if flags.is_disconnect_packet_from_server and reason.value not in _GOING_AWAY:
                self._failure = self._refused(reason)
            elif self._connected:
                known = "" if reason.value == _UNSPECIFIED else f" ({reason})"
                self._failure = self._unreachable(f"the link broke{known}")
            else:
                self._failure = _ClosedEarly(
                    f"{self._where}: it closed the connection instead of answering; does it expect TLS "
                    "(broker.tls), or is something else listening there?"
                )
        self._connected = False

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._handled += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return  # no topic of ours, and no broker should let it pass
        # amqtt hands new clients the retained messages of other clients' subscriptions.
        if self._protocol == _V311 and not any(matches(p, topic) for p in self._subscriptions):
            return
        self._event_bytes += len(message.payload)
        self._events.append(Received(topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._handled += 1
        topic = self._outgoing.pop(mid, None)
        if topic is not None and reason.is_failure:
            self._events.append(Refused(topic, str(reason)))

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        self._handled += 1
        for pattern, reason in zip(self._subscribing.pop(mid, ()), reasons, strict=False):
            if reason.is_failure:
                self._events.append(Refused(pattern, f"subscription: {reason}"))

    def _send_subscribe(self, patterns: list[str]) -> None:
        if self._client is None:
            return
        if self._protocol == _V5:
            rc, mid = self._client.subscribe([(p, SubscribeOptions(qos=1)) for p in patterns])
        else:
            rc, mid = self._client.subscribe([(p, 1) for p in patterns])
        if rc == MQTTErrorCode.MQTT_ERR_SUCCESS and mid is not None:
            self._subscribing[mid] = patterns

    # -- what went wrong, in words

    def _unreachable(self, why: str) -> BusError:
        return BrokerUnreachable(f"{self._where}: {why}; {HINT}")

    def _refused(self, reason: ReasonCode) -> BusError:
        code = reason.value
        if code == _UNSUPPORTED_VERSION:
            return _VersionRefused(
                f"{self._where}: it does not speak MQTT {'5' if self._protocol == _V5 else '3.1.1'}; "
                'set broker.protocol = "auto"'
            )
        if code == _SESSION_TAKEN_OVER:
            return BrokerRefused(
                f"{self._where}: another party connected as {self._client_id!r} and took our place; "
                "give each party an id of its own (edge.node_id)"
            )
        if code == _PACKET_TOO_LARGE:
            return BrokerRefused(f"{self._where}: it cut the link: a message was larger than it takes")
        hint = _CONNACK_HINTS.get(code)
        return BrokerRefused(f"{self._where}: it said: {reason}" + (f"; {hint}" if hint else ""))


def _cork(sock: object, *, on: bool) -> None:
    """Hold small packets back, or let them go (Linux; elsewhere nothing)."""
    if isinstance(sock, socket.socket) and hasattr(socket, "TCP_CORK"):
        with contextlib.suppress(OSError):  # closed meanwhile
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, int(on))
