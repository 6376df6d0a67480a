"""How what is current is said to the fleet: sealed by the coordinator's certificate or by the release key."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from apiary.errors import RequestRefused
from apiary.wire.messages import ReleaseCurrent
from apiary_coordinator.feature import Desk


class ReleaseSigner(Protocol):
    """Says what is current to the fleet, sealed."""

    def key(self) -> str:
        """The public key that nodes pin. Raises RequestRefused where there is none to pin, StoreError."""
        ...

    def send(self, message: ReleaseCurrent) -> None:
        """Publish it. Raises StoreError."""
        ...

    def is_ours(self, payload: bytes) -> bool:
        """Whether this is what was sent last."""
        ...


class CertificateSigner:
    """Where the fleet has an authority the coordinator's certificate signs releases like all else."""

    def __init__(self, desk: Desk):
        self._desk = desk

    def key(self) -> str:
        """There is none to pin."""
        raise RequestRefused(
            "releases are signed with the coordinator's certificate: nodes trust security.ca, not a key"
        )

    def send(self, message: ReleaseCurrent) -> None:
        """Publish it; the outlet seals."""
        self._desk.outlet.send(message)

    def is_ours(self, payload: bytes) -> bool:
        """What another signed was refused before it came here."""
        return True


class ReleaseKeySigner:
    """Seals with the release key, made where there is none yet."""

    def __init__(self, desk: Desk, key_file: Path):
        self._desk = desk
        self._file = key_file
        self._said = b""

    def key(self) -> str:
        """The public key, as nodes pin it. Raises StoreError."""
        from apiary.identity.release_key import load_or_make, public_text

        return public_text(load_or_make(self._file))

    def send(self, message: ReleaseCurrent) -> None:
        """Publish it, sealed. Raises StoreError."""
        from apiary.identity.release_key import load_or_make, seal

        topic = self._desk.topics.build(message.kind)
        sealed = seal(load_or_make(self._file), topic, message.encode(), message.serial)
        self._said = sealed
        self._desk.outlet.send_sealed(message.kind, sealed)

    def is_ours(self, payload: bytes) -> bool:
        """To the last byte."""
        return payload == self._said
