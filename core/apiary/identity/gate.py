"""The one place where messages are sealed on their way out and opened on their way in.

A service has one gate. Which kinds are signed, and by whom, stands with the topics (`TopicKind.signer`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.identity.roles import Role
from apiary.wire.topics import Topic, TopicKind

if TYPE_CHECKING:
    from apiary.settings import SecuritySettings


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


def load_gate(
    security: SecuritySettings,
    role: Role,
    name: str | None,
    marks: Path | None,
    wall: Callable[[], float],
) -> MessageGate:
    """The gate according to the settings; `OPEN` without security.ca. Raises SettingsError, StoreError.

    `name`: whom this party's certificate must name. `marks`: the file that guards against repetition;
    None for a party that comes and goes, which keeps it in memory.
    """
    if security.ca is None:
        return OPEN
    from apiary.identity.credentials import FileGate  # loads `cryptography`: 17 MB that an open gate saves

    return FileGate(security, role, name, marks, wall)
