"""Control messages out: built, sealed, sent, and, where retained, kept to be published on every connect."""

from collections.abc import Callable

from apiary.bus.bus import Bus
from apiary.identity.gate import OPEN, MessageGate
from apiary.wire import NodeId
from apiary.wire.messages import Message
from apiary.wire.topics import TopicKind, Topics

Tap = Callable[[TopicKind, NodeId | None, Message], None]
"""Sees every control message that a party sends or takes; for live views."""


def no_tap(kind: TopicKind, node: NodeId | None, message: Message) -> None:
    """Watch nothing."""


class Outlet:
    """Sends messages on their own topics. The broker may forget: this party's retained state lives here."""

    def __init__(self, bus: Bus, topics: Topics, tap: Tap = no_tap, gate: MessageGate = OPEN):
        self._bus = bus
        self._topics = topics
        self._tap = tap
        self._gate = gate
        self._sealed_by = gate.generation
        self._retained: dict[str, tuple[TopicKind, bytes, bytes]] = {}

    def send(self, message: Message, node: NodeId | None = None) -> bool:
        """Publish a message; False where there is no connection (a retained one follows by itself)."""
        kind = message.kind
        self._tap(kind, node, message)
        return self._put(self._topics.build(kind, node=node), message.encode(), kind)

    def send_sealed(self, kind: TopicKind, payload: bytes) -> bool:
        """Publish a message that its sender has sealed itself."""
        return self._put(self._topics.build(kind), payload, kind)

    def metric(self, name: str, value: float) -> bool:
        """Publish one plain number, which MQTT Explorer plots."""
        topic = self._topics.build(TopicKind.METRIC, metric=name)
        text = str(int(value)) if float(value).is_integer() else f"{value:.6g}"
        return self._put(topic, text.encode(), TopicKind.METRIC)

    def restore(self) -> None:
        """Publish all retained state again, after a connect: the very same bytes, a repetition."""
        # What an old certificate sealed would be refused once that ends.
        renewed = self._sealed_by != self._gate.generation
        self._sealed_by = self._gate.generation
        for topic, (kind, payload, before) in self._retained.items():
            sealed = self._gate.seal(kind, topic, payload) if renewed else before
            self._retained[topic] = (kind, payload, sealed)
            self._bus.publish(topic, sealed, qos=kind.qos, retain=True)

    def renew(self) -> None:
        """Publish all retained state again where the certificate that sealed it was renewed."""
        if self._sealed_by != self._gate.generation:
            self.restore()

    def _put(self, topic: str, payload: bytes, kind: TopicKind) -> bool:
        sealed = self._gate.seal(kind, topic, payload)
        if kind.retain:
            self._retained[topic] = (kind, payload, sealed)
        return self._bus.publish(topic, sealed, qos=kind.qos, retain=kind.retain)
