"""Messages in: verified and decoded once, before any receiver sees them. The counterpart of `Outlet`."""

from dataclasses import dataclass

from apiary.bus.bus import Received
from apiary.complaints import Complaints
from apiary.errors import SignatureRefused
from apiary.identity.gate import MessageGate
from apiary.identity.roles import Role
from apiary.wire.messages import BY_KIND, Message
from apiary.wire.topics import Topic


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as its receivers get it; they dispatch on the type of `content`.

    `content` is the decoded message; the bytes of a chunk, a metric or a release's manifest (whose seal the
    receiver verifies); or None where a retained message was removed from the broker. `address` is the MQTT
    topic as a string.
    """

    topic: Topic
    content: Message | bytes | None
    retained: bool = False
    address: str = ""


class Inlet:
    """Passes on what its sender signed and what can be decoded; a refusal is logged once a topic and kind."""

    def __init__(self, gate: MessageGate, complaints: Complaints):
        self._gate = gate
        self._complaints = complaints

    def open(self, topic: Topic, event: Received) -> Delivery | None:
        """The message that came, None where its signature is refused. Raises WireError, StoreError."""
        payload = self.verify(topic, event)
        if payload is None:
            return None
        return Delivery(topic, decode(topic, payload), event.retained, event.topic)

    def verify(self, topic: Topic, event: Received) -> bytes | None:
        """The payload without its seal, None where that is refused. Raises StoreError."""
        try:
            return self._gate.open(topic, event.topic, event.payload)
        except SignatureRefused as e:
            self._complaints.about(event.topic, e)
            return None


def decode(topic: Topic, payload: bytes) -> Message | bytes | None:
    """A payload as the message of its topic's kind. Raises VersionError, MessageError.

    >>> decode(Topic(TopicKind.NODE_STATUS, node=NodeId("pi-1")), b"") is None
    True
    """
    kind = BY_KIND.get(topic.kind)
    if kind is None:
        return payload
    if not payload and topic.kind.retain:
        return None
    sender = topic.kind.sender
    who = "the coordinator" if sender is Role.COORDINATOR else f"{sender.value} {topic.node}"
    return kind.decode(payload, who=who)
