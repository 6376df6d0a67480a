"""The key that releases are signed with where there is no fleet authority: made once, pinned by the nodes.

A release is a program that a node will run, so it is signed even where nothing else is. The envelope is that
of `signing`; the certificate in it is signed by its own key and holds at any time, because a Pi without a
clock must judge it too. What counts is the key.
"""

import base64
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from apiary.errors import SignatureRefused, StoreError
from apiary.files import write_atomic
from apiary.identity.certificates import SIGNING_USE, Trust, private_pem, subject_of
from apiary.identity.roles import Identity, Role
from apiary.identity.signing import MAX_SEAL_BYTES, Signer, Verifier

WHO: Final = Identity("releases", Role.COORDINATOR)
_FROM: Final = datetime(1970, 1, 2, tzinfo=UTC)
_UNTIL: Final = datetime(9999, 12, 31, tzinfo=UTC)
_CERT: Final = re.compile(rb',"cert":"([A-Za-z0-9+/]{4,4096}={0,2})","sig":"')


def load_or_make(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM file, made where there is none. Raises StoreError."""
    try:
        if not path.exists():
            write_atomic(path, private_pem(Ed25519PrivateKey.generate()), mode=0o600)
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as e:
        raise StoreError(
            f"the release key {path} cannot be read: {getattr(e, 'strerror', None) or e}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(f"the release key {path} is a {type(key).__name__}, expected Ed25519")
    return key


def public_text(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """The public key as 44 characters of base64: what a node pins (`edge.slots.release_key`)."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return base64.b64encode(public.public_bytes_raw()).decode()


def seal(key: Ed25519PrivateKey, topic: str, payload: bytes, issued: int) -> bytes:
    """`payload` sealed with this key; `issued` grows with each."""
    return Signer(key, _certificate(key), lambda: issued).seal(topic, payload)


class PinnedKey:
    """Opens what was sealed with one key: the one given, otherwise the first one seen."""

    def __init__(self, pinned: str | None):
        self.pinned = pinned

    def open(self, topic: str, payload: bytes) -> bytes:
        """The message as it was before it was sealed. Raises SignatureRefused.

        Repetitions are for the caller to refuse: the message has a serial number of its own.
        """
        certificate, key = _carried(topic, payload)
        if self.pinned is not None and key != self.pinned:
            raise SignatureRefused(
                f"{topic}: signed with the release key {key}, this node trusts {self.pinned}; if the "
                "coordinator was set up anew, set edge.slots.release_key (`apiary release key` shows it)"
            )
        verifier = Verifier(Trust([certificate]), _NoMarks(), lambda: _FROM, max_ahead=None)
        opened = verifier.open(topic, payload, role=WHO.role, name=WHO.name)
        self.pinned = key
        return opened


class _NoMarks:
    def admit(self, signer: str, topic: str, issued: int, *, key: str = "", since: int = 0) -> int:
        return 0


def _carried(topic: str, payload: bytes) -> tuple[x509.Certificate, str]:
    found = _CERT.search(payload, max(0, len(payload) - MAX_SEAL_BYTES))
    if found is None:
        raise SignatureRefused(f"{topic}: not signed: a release always is")
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(found[1]))
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as e:
        raise SignatureRefused(f"{topic}: its certificate cannot be read: {str(e)[:200]}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureRefused(f"{topic}: signed with a {type(key).__name__}, expected Ed25519")
    return certificate, public_text(key)


def _certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    """The same for the same key, at any time: serial number, dates and signature are not drawn."""
    subject = subject_of(WHO)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.ExtendedKeyUsage([SIGNING_USE]), critical=False)
        .sign(key, None)
    )
