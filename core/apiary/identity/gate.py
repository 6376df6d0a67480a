"""The one place where messages are sealed on their way out and opened on their way in.

A service has one gate. Which kinds are signed, and by whom, stands with the topics (`TopicKind.signer`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from apiary.errors import SignatureRefused
from apiary.identity.roles import Role
from apiary.wire.topics import Topic, TopicKind

if TYPE_CHECKING:
    from apiary.settings import SecuritySettings


class MessageGate(Protocol):
    """What a service asks before it sends, and before it decodes."""

    @property
    def generation(self) -> int:
        """Another number once messages must be sealed anew: the certificate was renewed."""
        ...

    def seal(self, kind: TopicKind, topic: str, payload: bytes) -> bytes:
        """`payload` as it is sent: signed, where this kind is signed by parties such as this one."""
        ...

    def open(self, at: Topic, topic: str, payload: bytes) -> bytes:
        """`payload` as its sender meant it. Raises SignatureRefused where it must be signed and is not."""
        ...


class _Open:
    """No signatures: whoever the broker lets write is believed."""

    generation = 0

    def seal(self, kind: TopicKind, topic: str, payload: bytes) -> bytes:
        return payload

    def open(self, at: Topic, topic: str, payload: bytes) -> bytes:
        return payload


OPEN: Final[MessageGate] = _Open()


class Sealing(Protocol):
    """`signing.Signer`."""

    def seal(self, topic: str, payload: bytes) -> bytes:
        """Sign."""
        ...


class OpenedMessage(Protocol):
    """`signing.Verifier`."""

    def open(self, topic: str, payload: bytes, *, role: Role, name: str | None = None) -> bytes:
        """Verify. Raises SignatureRefused."""
        ...


class SigningGate:
    """Every message of a signed kind carries its sender's signature, or is refused."""

    generation = 0

    def __init__(self, role: Role, verifier: OpenedMessage, signer: Sealing | None):
        self._role = role
        self.verifier = verifier
        self.signer = signer

    def seal(self, kind: TopicKind, topic: str, payload: bytes) -> bytes:
        """Sign what this role signs."""
        if self.signer is None or kind.signer is not self._role:
            return payload
        return self.signer.seal(topic, payload)

    def open(self, at: Topic, topic: str, payload: bytes) -> bytes:
        """Verify: a node and an operator may speak under their own names only."""
        role = at.kind.signer
        if role is None or _is_last_will(at.kind, payload):
            return payload
        name = at.node if role in (Role.NODE, Role.OPERATOR) else None
        return self.verifier.open(topic, payload, role=role, name=name)


def load_gate(
    security: SecuritySettings,
    role: Role,
    name: str | None,
    marks: Path | None,
    wall: Callable[[], float],
) -> MessageGate:
    """The gate that the settings ask for; `OPEN` without security.ca. Raises SettingsError, StoreError.

    `name`: whom this party's certificate must name. `marks`: the file that guards against repetition;
    None for a party that comes and goes, which keeps it in memory.
    """
    if security.ca is None:
        return OPEN
    from apiary.identity.credentials import FileGate  # loads `cryptography`: 17 MB that an open gate saves

    return FileGate(security, role, name, marks, wall)


def _is_last_will(kind: TopicKind, payload: bytes) -> bool:
    """The broker says a coordinator's last will; it cannot be sealed, and only says that nobody is there."""
    if kind is not TopicKind.COORDINATOR_STATUS or len(payload) > 1_000:
        return False
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("state") == "offline" and "sig" not in said


__all__ = ["OPEN", "MessageGate", "SignatureRefused", "SigningGate", "load_gate"]
