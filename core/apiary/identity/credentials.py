"""The files that `[security]` names: read at the start, and again when they change.

A certificate that was renewed and a list that revokes somebody count within a second, without a restart.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from apiary.errors import NotReady, SettingsError
from apiary.files import Stamp, stamp
from apiary.identity.certificates import Trust
from apiary.identity.gate import MessageGate
from apiary.identity.key_files import candidates, put_in_place
from apiary.identity.replay_guard import DiskMarks
from apiary.identity.revocations import load_lists
from apiary.identity.roles import Identity, Role
from apiary.identity.signing import Signer, Verifier
from apiary.settings import SecuritySettings
from apiary.wire.topics import Topic, TopicKind

LOOK_S: Final = 1.0
"""Shortest time between two looks at whether the files changed."""
MAX_BYTES: Final = 8 * 2**20
"""Of a file; a list of 100,000 revoked certificates has about 5 MB."""
_SIGNING: Final = {Role.NODE, Role.COORDINATOR, Role.OPERATOR}
log = logging.getLogger(__name__)
T = TypeVar("T")


class SigningGate(MessageGate):
    """Messages of a signed kind carry their sender's signature, or are refused."""

    def __init__(self, role: Role, verifier: Verifier, signer: Signer | None):
        self._role = role
        self.verifier = verifier
        self.signer = signer

    def look(self) -> None:
        """Called before each message: `FileGate` reads again what changed on disk."""

    def seal(self, kind: TopicKind, topic: str, payload: bytes) -> bytes:
        """Sign what this role signs."""
        self.look()
        if self.signer is None or kind.signer is not self._role:
            return payload
        return self.signer.seal(topic, payload)

    def open(self, at: Topic, topic: str, payload: bytes) -> bytes:
        """Verify: a node and an operator may speak under their own names only."""
        self.look()
        role = at.kind.signer
        if role is None or _is_last_will(at.kind, payload):
            return payload
        name = at.node if role in (Role.NODE, Role.OPERATOR) else None
        return self.verifier.open(topic, payload, role=role, name=name)


class FileGate(SigningGate):
    """A `SigningGate` whose certificates are read again when their files change. For one thread."""

    def __init__(
        self,
        security: SecuritySettings,
        role: Role,
        name: str | None,
        marks: Path | None,
        wall: Callable[[], float],
    ):
        self._security = security
        self._name = name
        self._wall = wall
        self._looked_at = wall()
        self._seen = self._stamps()
        self._marks = DiskMarks(marks, wall)
        super().__init__(
            role,
            Verifier(load_trust(security), self._marks, lambda: datetime.fromtimestamp(wall(), UTC)),
            load_signer(security, role, name, self._marks.issue),
        )

    def look(self) -> None:
        """Take certificates and lists as they are on disk now; those in use stay where they do not fit."""
        now = self._wall()
        if abs(now - self._looked_at) < LOOK_S:
            return
        self._looked_at = now
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            trust = load_trust(self._security)
            signer = load_signer(self._security, self._role, self._name, self._marks.issue)
        except SettingsError as e:
            # A certificate and its key change one after the other; the second change is seen too.
            log.warning("%s; what was read before stays in use", e)
            return
        if forgotten := trust.remember(self.verifier.trust):
            log.warning(
                "security.crl %s no longer names %d revoked certificates that it named before: they stay "
                "refused here; was the authority restored from a backup? `apiary pki apply --list` gives it "
                "a list back",
                self._security.crl,
                forgotten,
            )
        self.verifier.trust, self.signer = trust, signer
        self.generation += 1
        log.info("certificates read again: %s", signer.identity if signer else "to verify with")

    def _stamps(self) -> tuple[Stamp, ...]:
        s = self._security
        return tuple(stamp(path) for path in (s.ca, s.crl, s.cert, s.key))


def load_trust(security: SecuritySettings) -> Trust:
    """The authorities and what they revoked. Raises SettingsError naming the file."""
    authorities = _read("ca", security.ca, x509.load_pem_x509_certificates)
    if security.crl is None:
        return Trust(authorities)
    return Trust(authorities, _read("crl", security.crl, load_lists))


def load_signer(
    security: SecuritySettings, role: Role, name: str | None, issue: Callable[[], int]
) -> Signer | None:
    """This party's signer. Raises SettingsError where it must have one, or it is not for it."""
    if security.cert is None or security.key is None:
        if role in _SIGNING:
            raise SettingsError(
                "security.ca is set, but not security.cert and security.key: the messages of a party with "
                f"the role {role} must be signed; `apiary pki` makes them"
            )
        return None
    certificate = _read("cert", security.cert, x509.load_pem_x509_certificate)
    signer = _fitting_signer(security.cert, certificate, security.key, issue)
    if signer.identity != Identity(name or signer.identity.name, role):
        expected = Identity(name, role) if name else f"the role {role}"
        raise SettingsError(
            f"security.cert {security.cert} is that of {signer.identity}, and this is {expected}: "
            "its messages would be refused"
        )
    return signer


def _fitting_signer(
    cert: Path, certificate: x509.Certificate, path: Path, issue: Callable[[], int]
) -> Signer:
    why = ""
    for found in candidates(path):
        key = _read("key", found, lambda pem: load_pem_private_key(pem, None))
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(
                f"security.key {found} is a {type(key).__name__}, expected an Ed25519 key: "
                "broker.tls_key names the one for TLS"
            )
        try:
            signer = Signer(key, certificate, issue)
        except ValueError as e:
            why = str(e)
        else:
            put_in_place(found, path)
            return signer
    raise NotReady(f"security.cert {cert}: {why}")


def _is_last_will(kind: TopicKind, payload: bytes) -> bool:
    """The broker publishes a coordinator's last will, unsealed; all it states is that nobody is there."""
    if kind is not TopicKind.COORDINATOR_STATUS or len(payload) > 1_000:
        return False
    try:
        status = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return isinstance(status, dict) and status.get("state") == "offline" and "sig" not in status


def _read(key: str, path: Path | None, parse: Callable[[bytes], T]) -> T:
    try:
        with (path or Path()).open("rb") as f:
            pem = f.read(MAX_BYTES + 1)
        if len(pem) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return parse(pem)
    except OSError as e:
        raise NotReady(f"security.{key} {path}: {e.strerror}") from None
    except (ValueError, TypeError) as e:
        raise NotReady(f"security.{key} {path}: not a usable PEM file: {str(e)[:200]}") from None
