"""Frozen bytes of a signed message: sealed the same today as yesterday, and opened.

`signed/` holds an authority's certificate, a signer's, and a message that it sealed. Ed25519 gives the same
signature each time; a certificate (P-256) is another one each time, so that it is frozen as well. Where the
format is meant to change, write them anew by `python tests/golden/test_signed_golden.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from apiary.errors import SignatureRefused
from apiary.identity.authority import KeyUse, Term, found
from apiary.identity.certificates import Trust
from apiary.identity.replay_guard import DiskMarks
from apiary.identity.roles import Identity, Role
from apiary.identity.signing import Signer, Verifier
from apiary.wire.messages import Announcement, Receipt

FOLDER = Path(__file__).parent / "signed"
SEED = bytes(range(32))
TOPIC = "apiary/default/node/pi-07/receipt"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ISSUED = 1_795_176_000_123
MESSAGE = Receipt(digest="0123456789abcdef" * 4, state="accepted", run="run-1", round=3)


def certificate() -> x509.Certificate:
    return x509.load_pem_x509_certificate((FOLDER / "cert.pem").read_bytes())


def sealed() -> bytes:
    signer = Signer(Ed25519PrivateKey.from_private_bytes(SEED), certificate(), lambda: ISSUED)
    return signer.seal(TOPIC, MESSAGE.encode())


def test_the_same_bytes_are_sealed_as_yesterday() -> None:
    assert sealed() == (FOLDER / "receipt.json").read_bytes()


def test_yesterdays_bytes_are_opened() -> None:
    authority = x509.load_pem_x509_certificate((FOLDER / "ca.pem").read_bytes())
    verifier = Verifier(Trust([authority]), DiskMarks(None, lambda: 0.0), lambda: NOW)
    frozen = (FOLDER / "receipt.json").read_bytes()
    opened = verifier.open(TOPIC, frozen, role=Role.COORDINATOR)
    assert opened == MESSAGE.encode()
    with pytest.raises(SignatureRefused):
        verifier.open(TOPIC.replace("07", "08"), frozen, role=Role.COORDINATOR)


def test_a_party_that_does_not_verify_reads_it_all_the_same() -> None:
    assert Receipt.decode((FOLDER / "receipt.json").read_bytes(), who="test") == MESSAGE
    assert Announcement.kind.signer is Role.COORDINATOR


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    term = Term(NOW, 36_500)
    ca = found(generate_private_key(SECP256R1()), "golden", term, 1)
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    whom = Identity("hive", Role.COORDINATOR)
    made = ca.issue(public, whom, KeyUse.SIGNING, term=term, serial=2)
    (FOLDER / "ca.pem").write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    (FOLDER / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (FOLDER / "receipt.json").write_bytes(sealed())
