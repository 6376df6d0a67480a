"""The fleet's authority: its own certificate, those it issues, and the list of those it revoked (RFC 5280).

Pure: keys, serial numbers and the time come in. Three kinds of certificates, which do not stand for one
another: TLS clients and TLS servers (P-256), and Ed25519 keys that sign messages.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from apiary.errors import WireError
from apiary.identity.certificates import SIGNING_USE, subject_of
from apiary.identity.roles import Identity

BACKDATED: Final = timedelta(hours=1)
"""A device whose clock is a little late takes its new certificate all the same."""
PublicKey = EllipticCurvePublicKey | Ed25519PublicKey


class KeyUse(Enum):
    """What a certificate is for, by its extended key usage."""

    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    SIGNING = SIGNING_USE


@dataclass(frozen=True, slots=True)
class Term:
    """From when until when; the authority's own end cuts it short."""

    now: datetime
    days: float


@dataclass(frozen=True, slots=True)
class Authority:
    """A P-256 key and the certificate of the fleet's authority."""

    key: EllipticCurvePrivateKey
    certificate: x509.Certificate

    def issue(
        self,
        key: PublicKey,
        whom: Identity,
        use: KeyUse,
        *,
        term: Term,
        serial: int,
        names: Iterable[str] = (),
    ) -> x509.Certificate:
        """A certificate for `key`; `names` are a server's host names and addresses."""
        ca = self.certificate
        key_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            _builder(subject_of(whom), key, term, serial, not_after=ca.not_valid_after_utc)
            .issuer_name(ca.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use.value]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False
            )
        )
        if alternatives := [_general_name(name) for name in names]:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def revocations(
        self, revoked: Mapping[int, datetime], number: int, since: datetime
    ) -> x509.CertificateRevocationList:
        """The list of revoked serial numbers and since when; the list itself counts from `since` on.

        Good until the authority's own end: OpenSSL lets nobody in where a list's next update is overdue, and
        a fleet must not stop because nobody wrote a new list. Nor by one whose `since` is yet to come; of two
        it prefers the later one, so `since` grows with each list.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(since)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for serial, at in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256())


def found(key: EllipticCurvePrivateKey, name: str, term: Term, serial: int) -> Authority:
    """A new authority called `name`, which signs for itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(subject, key.public_key(), term, serial)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def requested_key(csr: x509.CertificateSigningRequest, use: KeyUse, who: str) -> PublicKey:
    """The key that a request proves to hold. Raises WireError naming `who` and what is expected.

    Nothing else in a request counts: the authority decides who it is for, and for what.
    """
    key, request = csr.public_key(), f"{who}: the request for {use.name.lower()}"
    if use is KeyUse.SIGNING:
        kind, fits = "Ed25519", isinstance(key, Ed25519PublicKey)
    else:
        kind, fits = "P-256", isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    if not fits or not isinstance(key, PublicKey):
        raise WireError(f"{request} has a {type(key).__name__}, expected {kind}")
    if not csr.is_signature_valid:
        raise WireError(f"{request} is not signed by its own key: make it again")
    return key


def _builder(
    subject: x509.Name, key: PublicKey, term: Term, serial: int, not_after: datetime | None = None
) -> x509.CertificateBuilder:
    end = term.now + timedelta(days=term.days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(term.now - BACKDATED)
        .not_valid_after(min(end, not_after) if not_after else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
