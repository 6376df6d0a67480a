"""A fleet's authority and parties with signing keys, made in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from apiary.identity.authority import Authority, KeyUse, Term, found
from apiary.identity.certificates import Trust
from apiary.identity.roles import Identity, Role
from apiary.identity.signing import Marks, Signer, Verifier

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
_serials = count(1)


def authority(name: str = "orchard") -> Authority:
    return found(generate_private_key(SECP256R1()), name, Term(NOW, 3650), next(_serials))


def signing_certificate(
    ca: Authority, key: Ed25519PrivateKey, name: str, role: Role, *, use: KeyUse = KeyUse.SIGNING
) -> x509.Certificate:
    whom = Identity(name, role)
    return ca.issue(key.public_key(), whom, use, term=Term(NOW, 30), serial=next(_serials))


class MemoryMarks:
    """`signing.Marks` without a disk."""

    def __init__(self) -> None:
        self.newest: dict[tuple[str, str], int] = {}

    def admit(self, signer: str, topic: str, issued: int, *, key: str = "", since: int = 0) -> int:
        before = self.newest.get((signer, topic), 0)
        self.newest[signer, topic] = max(before, issued)
        return before


@dataclass
class Fleet:
    """One authority, its parties, and a clock that tests set."""

    ca: Authority = field(default_factory=authority)
    now: datetime = NOW
    issued: int = 1_000

    def signer(self, name: str, role: Role, *, ca: Authority | None = None) -> Signer:
        key = Ed25519PrivateKey.generate()
        return Signer(key, signing_certificate(ca or self.ca, key, name, role), self._issue)

    def verifier(self, *revoked: x509.Certificate, marks: Marks | None = None) -> Verifier:
        return Verifier(self.trust(*revoked), marks or MemoryMarks(), lambda: self.now)

    def trust(self, *revoked: x509.Certificate) -> Trust:
        serials = {c.serial_number: NOW for c in revoked}
        return Trust([self.ca.certificate], [self.ca.revocations(serials, 1, NOW)])

    def later(self, **by: float) -> None:
        self.now += timedelta(**by)

    def _issue(self) -> int:
        self.issued += 1
        return self.issued
