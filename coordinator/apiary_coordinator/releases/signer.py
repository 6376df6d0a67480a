"""Publishes the current release to the fleet, sealed by the coordinator's certificate or the release key."""

from pathlib import Path

from apiary.bus.outlet import Outlet
from apiary.errors import RequestRefused
from apiary.wire.messages import ReleaseCurrent
from apiary.wire.topics import Topics


class CertificateSigner:
    """Where the fleet has an authority the coordinator's certificate signs releases like all else."""

    def __init__(self, outlet: Outlet):
        self._outlet = outlet

    def key(self) -> str:
        """There is none to pin: raises RequestRefused."""
        raise RequestRefused(
            "releases are signed with the coordinator's certificate: nodes trust security.ca, not a key"
        )

    def send(self, message: ReleaseCurrent) -> None:
        """Publish it; the outlet seals."""
        self._outlet.send(message)

    def is_ours(self, payload: bytes) -> bool:
        """What another signed was refused before it came here."""
        return True


class ReleaseKeySigner:
    """Seals with the release key, made where there is none yet."""

    def __init__(self, outlet: Outlet, topics: Topics, key_file: Path):
        self._outlet = outlet
        self._topics = topics
        self._file = key_file
        self._sent = b""

    def key(self) -> str:
        """The public key, as nodes pin it. Raises StoreError."""
        from apiary.identity.release_key import load_or_make, public_text

        return public_text(load_or_make(self._file))

    def send(self, message: ReleaseCurrent) -> None:
        """Publish it, sealed. Raises StoreError."""
        from apiary.identity.release_key import load_or_make, seal

        topic = self._topics.build(message.kind)
        sealed = seal(load_or_make(self._file), topic, message.encode(), message.serial)
        self._sent = sealed
        self._outlet.send_sealed(message.kind, sealed)

    def is_ours(self, payload: bytes) -> bool:
        """Whether this is what was sent last, to the last byte."""
        return payload == self._sent


ReleaseSigner = CertificateSigner | ReleaseKeySigner
