"""One connection to a broker, from CONNECT until it breaks: paho-mqtt without its threads.

MQTT 5, or 3.1.1 where the broker refuses 5. The only module that imports paho; `bus/mqtt.py` renews links.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from apiary.addresses import Address
from apiary.bus.bus import BrokerLimits, Event, PublishRefused, Received, Will
from apiary.bus.packets import MAX_PACKET_BYTES, Malformed, PacketReader, publish
from apiary.bus.refusals import GOING_AWAY, UNSPECIFIED, ShutOut, WindowRefused, refused, unreachable
from apiary.bus.stream import Stream
from apiary.errors import BrokerRefused, BrokerUnreachable, BusError
from apiary.settings import BrokerSettings

_V5: Final = MQTTProtocolVersion.MQTTv5
_V311: Final = MQTTProtocolVersion.MQTTv311
_PUBLISH: Final = 0x30
_PUBACK: Final = 0x40
_SUCCESS: Final = ReasonCode(PacketTypes.PUBACK)
_NO_PROPERTIES: Final = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]  # paho leaves it so

Protocol = Literal["5", "3.1.1"]


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


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """Who connects to which broker, and what it states in CONNECT; see `MqttBus`."""

    broker: BrokerSettings
    client_id: str
    secret: str | None = field(repr=False)
    will: Will | None
    receive_maximum: int


class SpeaksHttp(Exception):  # noqa: N818 - caught within this module
    """What is there is no plain MQTT listener."""


class _Client(paho.Client):
    """paho over a stream that is connected already, because paho's own connecting blocks."""

    def __init__(
        self,
        stream: Stream,
        client_id: str,
        protocol: MQTTProtocolVersion,
        received: Callable[[bytes, bytes, bool], None],
    ):
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if protocol == _V5 else True,
            protocol=protocol,
            # Otherwise paho goes down to MQTT 3.1 by itself, and blocks.
            reconnect_on_failure=False,
        )
        self._stream = stream
        self._packets = PacketReader()
        self._received = received
        self._heard = False

    def _create_socket(self) -> Any:
        return self._stream

    def read_all(self) -> bool:
        """Take in what one read of the socket gives; whether more may wait. Raises Malformed, OSError.

        Instead of `loop_read`: packets that come often are taken here, the others by paho.
        """
        while True:
            wanted = self._packets.ask
            try:
                data = self._stream.recv(wanted)
            except BlockingIOError:
                return False
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            with self._msgtime_mutex:
                self._last_bytes_received = time.monotonic()
            if not self._heard and data.startswith(b"HTTP/"):
                raise SpeaksHttp
            self._heard = True
            found = self._packets.feed(data)
            for first, body in found:
                self._packet(first, body)
                if self._sock is None:
                    return False  # paho has closed it: a refusal, or a DISCONNECT
            if found or len(data) < wanted:
                return len(data) == wanted or self._stream.reads_ahead

    def _packet(self, first: int, body: memoryview) -> None:
        kind = first & 0xF0
        if kind == _PUBLISH:
            qos = first >> 1 & 3
            message = publish(body, qos, v5=self._protocol == _V5)
            if message is not None:
                topic, mid, payload = message
                self._received(topic, payload, bool(first & 1))
                if qos:
                    self._acknowledge(mid)
                return
        elif kind == _PUBACK and len(body) == 2:  # two bytes are the packet id, and mean success
            # paho builds a reason and properties for each acknowledgement, though few have any.
            mid = body[0] << 8 | body[1]
            with self._out_message_mutex:
                if mid in self._out_messages:
                    self._do_on_publish(mid, _SUCCESS, _NO_PROPERTIES)
            return
        self._in_packet = {  # as paho keeps one that has come whole
            "command": first,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        try:
            rc = self._packet_handle()
        except MalformedPacket as e:
            raise Malformed(f"a packet that paho cannot read: {e}") from None
        if rc > 0:
            self._loop_rc_handle(rc)

    def _acknowledge(self, mid: int) -> None:
        """PUBACK; past paho's queue while that is empty, as nothing of ours is half written then."""
        if not self._out_packet:
            with contextlib.suppress(BlockingIOError):
                self._stream.send(bytes((_PUBACK, 2, mid >> 8, mid & 0xFF)))
                return
        self._send_puback(mid)


class Link:
    """A link that has ended is never used again. `failure` is why it ended, None while it has not.

    `window`: how many publishes may wait for their acknowledgement. paho's callbacks run within the methods,
    and only take notes.
    """

    def __init__(
        self,
        sock: socket.socket,
        where: Address,
        options: ConnectOptions,
        hooks: Hooks,
        *,
        protocol: Protocol,
        window: int,
    ):
        self.failure: BusError | None = None
        self.connected = False
        self._sock = sock
        self._options = options
        self._protocol: Protocol = protocol
        self._window = window
        self._hooks = hooks
        self._notes = hooks.notes
        self._address = where
        self._where = f"broker {where}"
        self._outgoing: dict[int, str] = {}
        self._subscribing: dict[int, Sequence[str]] = {}
        self._stream = Stream(sock)
        version = _V5 if protocol == "5" else _V311
        self._client = _Client(self._stream, options.client_id, version, self._take)

    def connect(self) -> None:
        """Send CONNECT."""
        client, options, broker = self._client, self._options, self._options.broker
        client.max_inflight_messages_set(self._window)
        client.max_queued_messages_set(0)
        if broker.username is not None or options.secret is not None:
            client.username_pw_set(broker.username or "", options.secret)
        if options.will is not None:
            client.will_set(options.will.topic, options.will.payload, qos=1, retain=True)
        # Packets wait until the bus writes them, all that have gathered at once.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        if self._protocol == "5":
            # amqtt takes properties for the client id and waits for the rest of it, as it does with a will:
            # set broker.protocol to 3.1.1 for it.
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it so
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            if options.receive_maximum:
                properties.ReceiveMaximum = options.receive_maximum
            client.connect(
                self._address.host,
                self._address.port,
                broker.keepalive_s,
                clean_start=True,
                properties=properties,
            )
        else:
            client.connect(self._address.host, self._address.port, broker.keepalive_s)

    # -- hooks of the bus

    @property
    def backlog(self) -> int:
        """Publishes with QoS 1 that are not acknowledged."""
        return len(self._outgoing)

    @property
    def sock(self) -> socket.socket | None:
        """The socket under it."""
        return self._sock if self._client.socket() is not None else None

    @property
    def reads_ahead(self) -> bool:
        """Whether bytes wait to be read that the kernel will not announce."""
        return self._stream.reads_ahead

    @property
    def want_write(self) -> bool:
        """Whether something waits to be written."""
        return self._client.want_write() or self._stream.holds_back

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> bool:
        """Hand a message over; False where it was not taken."""
        info = self._client.publish(topic, payload, qos, retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS or not self.connected:
            return False
        if qos:
            self._outgoing[info.mid] = topic
        return True

    def subscribe(self, patterns: Sequence[str]) -> None:
        """Subscribe to all of these with QoS 1, in one packet."""
        if self._protocol == "5":
            rc, mid = self._client.subscribe([(p, SubscribeOptions(qos=1)) for p in patterns])
        else:
            rc, mid = self._client.subscribe([(p, 1) for p in patterns])
        if rc == MQTTErrorCode.MQTT_ERR_SUCCESS and mid is not None:
            self._subscribing[mid] = patterns

    def unsubscribe(self, pattern: str) -> None:
        """End a subscription."""
        self._client.unsubscribe(pattern)

    def read(self) -> bool:
        """Take in some packets that have arrived; whether more may wait."""
        try:
            return self._client.read_all()
        except Malformed as e:
            self._failed(BrokerRefused(f"{self._where}: {e}"))
        except SpeaksHttp:
            self._failed(
                BrokerUnreachable(
                    f"{self._where}: it answers in HTTP: a web server, or a listener for websockets; "
                    "broker.port must be one of plain MQTT, or of MQTT over TLS (usually 1883 or 8883)"
                )
            )
        except OSError as e:
            self._broke(e)
        return False

    def write(self) -> None:
        """Write what the socket takes."""
        self._client.loop_write()
        try:
            self._stream.flush()
        except OSError as e:
            self._broke(e)

    def misc(self) -> None:
        """Signs of life; to be called about once a second."""
        self._client.loop_misc()

    def disconnect(self) -> None:
        """Begin a clean disconnect: the will is not published."""
        self._client.disconnect()

    def drop(self) -> None:
        """Close the socket and forget what waited; no event follows."""
        self.connected = False
        self._client.on_disconnect = None
        with contextlib.suppress(OSError):
            self._sock.close()
        self._outgoing.clear()
        self._subscribing.clear()

    # -- events of paho

    def _on_connect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._notes.handled += 1
        if reason.is_failure:
            self.failure = self._refused(reason)
            return
        limits = BrokerLimits(
            "5.0" if self._protocol == "5" else "3.1.1",
            getattr(properties, "MaximumPacketSize", 0),
            getattr(properties, "ReceiveMaximum", 0),
        )
        if 0 < limits.receive_maximum < self._window:
            # paho takes a new window only before it connects, so it connects once more.
            self.failure = WindowRefused(self._where, limits.receive_maximum)
            return
        self.connected = True
        self._hooks.up(limits)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if self.failure is None:
            if flags.is_disconnect_packet_from_server and reason.value not in GOING_AWAY:
                self.failure = self._refused(reason)
            elif self.connected:
                known = "" if reason.value == UNSPECIFIED else f" ({reason})"
                self.failure = unreachable(self._where, f"the link broke{known}")
            else:
                self.failure = self._shut_out()
        self.connected = False

    def _broke(self, e: OSError) -> None:
        why = "" if isinstance(e, ConnectionResetError) else f" ({e.strerror or e})"
        broke = unreachable(self._where, f"the link broke{why}")
        self._failed(broke if self.connected else self._shut_out())

    def _failed(self, error: BusError) -> None:
        self.failure = self.failure or error

    def _shut_out(self) -> BusError:
        """Closed before CONNECT was answered."""
        broker = self._options.broker
        if broker.tls and broker.tls_cert is not None:
            # With TLS 1.3 a broker refuses a certificate after the handshake, mosquitto without a word.
            return ShutOut(
                f"{self._where}: it closed the connection after the TLS handshake: is this party's "
                "certificate expired, revoked, or of another authority? `apiary doctor` looks at it"
            )
        if broker.tls:
            return ShutOut(
                f"{self._where}: it closed the connection after the TLS handshake: does it ask for a "
                "certificate (broker.tls_cert and broker.tls_key), which this party does not show?"
            )
        return ShutOut(
            f"{self._where}: it closed the connection instead of answering MQTT's CONNECT; does it "
            "expect TLS (broker.tls), is it a listener for websockets, or is something else listening there?"
        )

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._take(message._topic, bytes(message.payload), message.retain)

    def _take(self, name: bytes, payload: bytes, retained: bool) -> None:
        """A message has come."""
        self._notes.handled += 1
        try:
            topic = name.decode()
        except UnicodeDecodeError:
            return  # no topic of ours, and no broker should let it pass
        # amqtt hands new clients the retained messages of other clients' subscriptions.
        if self._protocol != "5" and not self._hooks.subscribed(topic):
            return
        self._notes.event_bytes += len(payload)
        self._notes.events.append(Received(topic, payload, retained))

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._notes.handled += 1
        topic = self._outgoing.pop(mid, None)
        if topic is not None and reason.is_failure:
            self._notes.events.append(PublishRefused(topic, str(reason)))

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        self._notes.handled += 1
        for pattern, reason in zip(self._subscribing.pop(mid, ()), reasons, strict=False):
            if reason.is_failure:
                self._notes.events.append(PublishRefused(pattern, f"subscription: {reason}"))

    def _refused(self, reason: ReasonCode) -> BusError:
        return refused(
            self._where, reason.value, str(reason), client_id=self._options.client_id, protocol=self._protocol
        )
