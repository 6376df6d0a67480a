"""One authority after another: the old one vouches for the new one's key, and so whoever trusts it may go on.

Pure. A link is a certificate of the new authority's name and key that the old one signed. It is no part of a
chain: it is looked at once, by a party that knows the old authority alone, which then trusts the new one.
"""

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from apiary.identity.authority import Authority


def link(former: Authority, successor: Authority, serial: int) -> x509.Certificate:
    """The former authority's word that `successor` comes after it; holds until the end of either."""
    new, old = successor.certificate, former.certificate
    return (
        x509.CertificateBuilder()
        .subject_name(new.subject)
        .public_key(successor.key.public_key())
        .serial_number(serial)
        .issuer_name(old.subject)
        .not_valid_before(new.not_valid_before_utc)
        .not_valid_after(min(new.not_valid_after_utc, old.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(former.key, hashes.SHA256())
    )


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may sign others: an authority's own certificate, or a link."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        return False


def vouched(
    trusted: Iterable[x509.Certificate],
    offered: Iterable[x509.Certificate],
    links: Iterable[x509.Certificate],
    now: datetime,
) -> list[x509.Certificate]:
    """Of the authorities that are `offered` those that are trusted, or for which a trusted one vouched."""
    known, offered = list(trusted), list(offered)
    for word in links:
        if word.not_valid_before_utc <= now <= word.not_valid_after_utc and any(
            _signed(word, ca) for ca in known
        ):
            known += [ca for ca in offered if _same(ca, word)]
    return [ca for ca in offered if ca in known]


def _same(ca: x509.Certificate, word: x509.Certificate) -> bool:
    return ca.subject == word.subject and ca.public_key() == word.public_key()


def _signed(word: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        word.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return is_authority(word)
