"""Messages in: opened at one place, before anything decodes them. The counterpart of `Outlet`."""

from __future__ import annotations

from dataclasses import replace

from apiary.bus.bus import Received
from apiary.complaints import Complaints
from apiary.errors import SignatureRefused
from apiary.identity.gate import MessageGate
from apiary.wire.topics import Topic


class Inlet:
    """Lets in what its party signed; refusals are said once a topic and kind, then in whispers."""

    def __init__(self, gate: MessageGate, complaints: Complaints):
        self._gate = gate
        self._complaints = complaints

    def open(self, topic: Topic, event: Received) -> Received | None:
        """The message as its sender meant it, None where it is refused. Raises StoreError."""
        try:
            payload = self._gate.open(topic, event.topic, event.payload)
        except SignatureRefused as e:
            self._complaints.about(event.topic, e)
            return None
        return event if payload is event.payload else replace(event, payload=payload)
