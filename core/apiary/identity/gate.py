"""The one place where messages are sealed on their way out and opened on their way in.

A service has one gate. Which kinds are signed, and by whom, stands with the topics (`TopicKind.signer`).
"""

from typing import Final

from apiary.wire.topics import Topic, TopicKind


class MessageGate:
    """Seals a service's messages before they are sent, and verifies others before they are decoded.

    This one needs no signatures: whoever the broker lets write is believed.
    """

    generation = 0
    """Another number once messages must be sealed anew: the certificate was renewed."""

    def seal(self, kind: TopicKind, topic: str, payload: bytes) -> bytes:
        """`payload` as it is sent: signed, where this kind is signed by parties such as this one."""
        return payload

    def open(self, at: Topic, topic: str, payload: bytes) -> bytes:
        """`payload` without its envelope. Raises SignatureRefused where it must be signed and is not."""
        return payload


OPEN: Final = MessageGate()
