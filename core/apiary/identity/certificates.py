"""Reading a certificate and judging it by the fleet's authorities and their lists of revoked ones (RFC 5280).

Pure: the time comes in as an argument. An authority signs every certificate itself; there are no
intermediate ones, so that a judgement needs nothing but what `Trust` holds.
"""

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID, ObjectIdentifier

from apiary.errors import NotReady, TopicError
from apiary.identity.revocations import revoked_serials, signed_by
from apiary.identity.roles import Identity, Role
from apiary.wire.topics import check_name

SIGNING_USE: Final = ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""Extended key usage id-kp-documentSigning (RFC 9336): what signs messages opens no TLS link."""
_CACHED: Final = 256
"""Certificates whose issuer need not be checked again: a check of P-256 costs a Pi about a millisecond."""
PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey
_DATE: Final = "%Y-%m-%d %H:%M UTC"


def identity_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> Identity:
    """Name and role in the subject. Raises ValueError saying what is missing or unfit."""
    name = _one(certificate.subject, NameOID.COMMON_NAME, "common name")
    unit = _one(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME, "organizational unit")
    if unit not in set(Role):
        raise ValueError(f"its organizational unit is {unit[:64]!r}, expected one of {', '.join(Role)}")
    try:
        return Identity(check_name(name, "its common name"), Role(unit))
    except TopicError as e:
        raise ValueError(str(e)) from None


def subject_of(whom: Identity) -> x509.Name:
    """The subject in which `identity_of` finds `whom`."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, str(whom.role)),
            x509.NameAttribute(NameOID.COMMON_NAME, whom.name),
        ]
    )


class Trust:
    """The authorities that count, and what they revoked."""

    def __init__(
        self,
        authorities: Iterable[x509.Certificate],
        revocations: Iterable[x509.CertificateRevocationList] = (),
    ):
        self.authorities = tuple(authorities)
        given = list(revocations)
        # While an authority is replaced a file may hold the list of one that is not known here yet.
        known = [crl for crl in given if any(signed_by(crl, ca) for ca in self.authorities)]
        if given and not known:
            # Also between two files of one change: the second is a moment away.
            raise NotReady(
                f"the list of revoked certificates of {given[0].issuer.rfc4514_string()[:100]} is not signed "
                "by an authority that security.ca names: take both from the same `apiary pki` folder"
            )
        # Whichever of them names it: a serial number is drawn, and no two certificates have the same.
        self._revoked = revoked_serials(known)
        self._ours: OrderedDict[x509.Certificate, None] = OrderedDict()

    def refusal(self, certificate: x509.Certificate, now: datetime) -> str | None:
        """Why `certificate` does not hold at `now` (with time zone); None where it does."""
        if not self._issued(certificate):
            return f"issued by {_issuer(certificate)}, which is not this fleet's authority"
        if now < certificate.not_valid_before_utc:
            since = certificate.not_valid_before_utc.strftime(_DATE)
            return f"not valid before {since}, and the clock here says {now.strftime(_DATE)}: is it right?"
        if now > certificate.not_valid_after_utc:
            until = certificate.not_valid_after_utc.strftime(_DATE)
            return f"expired at {until} (the clock here says {now.strftime(_DATE)}): renew it"
        if certificate.serial_number in self._revoked:
            return f"revoked (serial {certificate.serial_number:x})"
        return None

    def remember(self, before: "Trust") -> int:
        """What was revoked `before` stays so, even if the lists here lack it; how many they lack."""
        if not set(self.authorities) & set(before.authorities):
            return 0
        forgotten = before._revoked - self._revoked
        self._revoked |= forgotten
        return len(forgotten)

    def _issued(self, certificate: x509.Certificate) -> bool:
        if certificate in self._ours:
            self._ours.move_to_end(certificate)
            return True
        if not any(_issued_by(certificate, ca) for ca in self.authorities):
            return False
        self._ours[certificate] = None
        if len(self._ours) > _CACHED:
            self._ours.popitem(last=False)
        return True


def private_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """A key as PEM (PKCS 8), locked where there is a passphrase."""
    lock = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


def _issuer(certificate: x509.Certificate) -> str:
    try:
        return certificate.issuer.rfc4514_string()[:100]
    except ValueError:  # parsed when it is asked for, and a forger writes what he likes
        return "a name that cannot be read"


def _issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _one(subject: x509.Name, oid: ObjectIdentifier, what: str) -> str:
    found = subject.get_attributes_for_oid(oid)
    if len(found) != 1:
        raise ValueError(f"its subject has {len(found)} fields {what}, expected one")
    return str(found[0].value)
