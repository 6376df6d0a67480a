"""Lists of revoked certificates (RFC 5280): read, compared, and kept so that no revoked serial is ever lost.

Pure. A list that is newer by its number may lack what an older one names: its authority was restored from a
backup in between. Whoever holds both keeps both.
"""

from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_BEGIN: Final = b"-----BEGIN X509 CRL-----"
Crl = x509.CertificateRevocationList


def load_lists(pem: bytes) -> list[Crl]:
    """Every list in a PEM file, which holds one at least. Raises ValueError."""
    parts = pem.split(_BEGIN)[1:]
    if not parts:
        raise ValueError("no list of revoked certificates (X509 CRL) in it")
    return [x509.load_pem_x509_crl(_BEGIN + part) for part in parts]


def list_number(crl: Crl) -> int:
    """The number that each list of an authority has, larger than in those before; 0 where it has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def revoked_serials(crls: Iterable[Crl]) -> frozenset[int]:
    """The serial numbers in any of these."""
    return frozenset(entry.serial_number for crl in crls for entry in crl)


def signed_by(crl: Crl, authority: x509.Certificate) -> bool:
    """Whether this authority made the list."""
    key = authority.public_key()
    return (
        crl.issuer == authority.subject
        and isinstance(key, EllipticCurvePublicKey)
        and crl.is_signature_valid(key)
    )


def without_loss(crls: Iterable[Crl]) -> list[Crl]:
    """The lists that are needed so that none of their serials is lost: the newest first.

    In the ordinary case that is the newest alone, which names all that those before it name.
    """
    kept: list[Crl] = []
    for crl in sorted(crls, key=list_number, reverse=True):
        same = [k for k in kept if k.issuer == crl.issuer]
        if not same or revoked_serials([crl]) - revoked_serials(same):
            kept.append(crl)
    return kept
