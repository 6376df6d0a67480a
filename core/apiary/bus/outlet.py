"""Control messages out: built, sent, and, where retained, kept to be published again on every connect."""

from __future__ import annotations

from collections.abc import Callable

from apiary.bus.bus import Bus
from apiary.wire import NodeId
from apiary.wire.messages import Message
from apiary.wire.topics import Kind, Topics

Tap = Callable[[Kind, NodeId | None, Message], None]
"""Sees every control message that a party sends or takes; for live views."""


def no_tap(kind: Kind, node: NodeId | None, message: Message) -> None:
    """Watch nothing."""


class Outlet:
    """Sends messages on their own topics. The broker may forget: this party's retained state lives here."""

    def __init__(self, bus: Bus, topics: Topics, tap: Tap = no_tap):
        self._bus = bus
        self._topics = topics
        self._tap = tap
        self._retained: dict[str, tuple[bytes, int]] = {}

    def send(self, message: Message, node: NodeId | None = None) -> bool:
        """Publish a message; False where there is no connection (a retained one follows by itself)."""
        kind = message.kind
        self._tap(kind, node, message)
        return self._put(self._topics.build(kind, node=node), message.encode(), kind)

    def send_sealed(self, kind: Kind, payload: bytes) -> bool:
        """Publish a message that its sender has sealed itself."""
        return self._put(self._topics.build(kind), payload, kind)

    def metric(self, name: str, value: float) -> bool:
        """Publish one plain number, which MQTT Explorer plots."""
        topic = self._topics.build(Kind.METRIC, metric=name)
        text = str(int(value)) if float(value).is_integer() else f"{value:.6g}"
        return self._put(topic, text.encode(), Kind.METRIC)

    def restore(self) -> None:
        """Publish all retained state again, after a connect."""
        for topic, (payload, qos) in self._retained.items():
            self._bus.publish(topic, payload, qos=qos, retain=True)

    def _put(self, topic: str, payload: bytes, kind: Kind) -> bool:
        if kind.retain:
            self._retained[topic] = (payload, kind.qos)
        return self._bus.publish(topic, payload, qos=kind.qos, retain=kind.retain)
