"""Seals byte by byte: both sides of each bound, and each spelling that is not the one right one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import timedelta
from functools import partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from tests.stand_ins.fleet_keys import NOW, Fleet, MemoryMarks, signing_certificate

from apiary.errors import MessageAhead, MessageAltered, MessageRepeated, MessageUnsigned, SignatureRefused
from apiary.identity.authority import KeyUse
from apiary.identity.roles import Identity, Role
from apiary.identity.signing import Signer, Verifier

TOPIC = "apiary/default/node/pi-07/offer"
FLEET = Fleet()
PAYLOAD = b'{"v":1,"round":3}'
DAY_MS = 86_400_000
NOW_MS = int(NOW.timestamp() * 1000)


def signer(issued: int = 5) -> tuple[Signer, Ed25519PrivateKey]:
    key = Ed25519PrivateKey.generate()
    return Signer(key, signing_certificate(FLEET.ca, key, "pi-07", Role.NODE), lambda: issued), key


def opened(sealed: bytes) -> bytes:
    return FLEET.verifier().open(TOPIC, sealed, role=Role.NODE, name="pi-07")


def test_a_seal_is_three_last_keys_of_the_message() -> None:
    made, key = signer(issued=7)
    sealed = made.seal(TOPIC, PAYLOAD)
    assert made.identity == Identity("pi-07", Role.NODE)
    head, _, signature = sealed.rpartition(b',"sig":"')
    der = base64.b64encode(made.certificate.public_bytes(Encoding.DER))
    assert head == b'{"v":1,"round":3,"issued":7,"cert":"%b"' % der
    key.public_key().verify(base64.b64decode(signature[:-2]), b"apiary-1\n" + TOPIC.encode() + b"\n" + head)
    assert list(json.loads(sealed)) == ["v", "round", "issued", "cert", "sig"]
    assert opened(sealed) == PAYLOAD


@pytest.mark.parametrize("payload", [b"{}", b"{ }", b'{"":}', b'x"":0}', b'{"":0x', b'[{"":0}]'])
def test_only_an_object_with_a_key_is_sealed(payload: bytes) -> None:
    with pytest.raises(ValueError, match="only a JSON object with a key can be sealed"):
        signer()[0].seal(TOPIC, payload)


def test_the_shortest_object_with_a_key_is_sealed_and_opened() -> None:
    assert opened(signer()[0].seal(TOPIC, b'{"":0}')) == b'{"":0}'


def test_what_is_too_short_for_an_object_is_not_opened_whoever_signed_it() -> None:
    made, key = signer()
    der = base64.b64encode(made.certificate.public_bytes(Encoding.DER))
    for payload in (b'{"":}', b"{}"):
        body = b'%b,"issued":5,"cert":"%b"' % (payload[:-1], der)
        signature = base64.b64encode(key.sign(b"apiary-1\n" + TOPIC.encode() + b"\n" + body))
        with pytest.raises(MessageUnsigned):
            opened(b'%b,"sig":"%b"}' % (body, signature))


@pytest.mark.parametrize(("size", "why"), [(3072, "its certificate cannot be used"), (3075, "not signed")])
def test_a_certificate_of_three_kilobytes_is_looked_at_and_a_longer_one_not(size: int, why: str) -> None:
    cert, signature = base64.b64encode(bytes(size)), base64.b64encode(bytes(64))
    sealed = b'{"v":1,"issued":9999999999999999,"cert":"%b","sig":"%b"}' % (cert, signature)
    with pytest.raises(SignatureRefused, match=why):
        opened(sealed)


@pytest.mark.parametrize(("ahead_ms", "taken"), [(DAY_MS, True), (DAY_MS + 1, False)])
def test_a_clock_may_be_ahead_by_a_day_to_the_millisecond(ahead_ms: int, taken: bool) -> None:
    sealed = signer(NOW_MS + ahead_ms)[0].seal(TOPIC, PAYLOAD)
    if taken:
        assert opened(sealed) == PAYLOAD
    else:
        with pytest.raises(MessageAhead, match="issued it at 2026-11-21 12:00, more than 1 day ahead"):
            opened(sealed)


def test_a_machine_without_a_clock_takes_any_number() -> None:
    verifier = Verifier(FLEET.trust(), MemoryMarks(), lambda: NOW, max_ahead=None)
    sealed = signer(10**16 - 1)[0].seal(TOPIC, PAYLOAD)
    assert verifier.open(TOPIC, sealed, role=Role.NODE) == PAYLOAD
    hour = Verifier(FLEET.trust(), MemoryMarks(), lambda: NOW, max_ahead=timedelta(hours=1))
    with pytest.raises(MessageAhead, match="issued it at 9999999999999999 ms, more than"):
        hour.open(TOPIC, sealed, role=Role.NODE)


def test_marks_are_kept_by_the_signers_key_and_when_it_was_certified() -> None:
    class Recorded(MemoryMarks):
        def admit(self, signer: str, topic: str, issued: int, *, key: str = "", since: int = 0) -> int:
            told.append((signer, topic, issued, key, since))
            return super().admit(signer, topic, issued, key=key, since=since)

    told: list[tuple[str, str, int, str, int]] = []
    made, key = signer(8)
    FLEET.verifier(marks=Recorded()).open(TOPIC, made.seal(TOPIC, PAYLOAD), role=Role.NODE)
    key_id = hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:32]
    since = int(made.certificate.not_valid_before_utc.timestamp())
    assert told == [("pi-07", TOPIC, 8, key_id, since)]


def test_base64_has_one_spelling() -> None:
    """The last character before the padding has bits that do not count."""
    sealed = signer()[0].seal(TOPIC, PAYLOAD)
    last = sealed[-5:-4]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = alphabet[alphabet.index(last) ^ 1]
    with pytest.raises(MessageAltered):
        opened(sealed[:-5] + bytes([other]) + sealed[-4:])
    for cert in (b"AAAAA", b"AAAAAB=="):
        changed = re.sub(rb'"cert":"[^"]+"', b'"cert":"%b"' % cert, sealed)
        with pytest.raises(SignatureRefused, match="its certificate cannot be used"):
            opened(changed)


def test_keys_that_sign_no_messages_are_refused_by_use_and_by_kind() -> None:
    key = Ed25519PrivateKey.generate()
    for use in (KeyUse.CLIENT, KeyUse.SERVER):
        tls = signing_certificate(FLEET.ca, key, "pi-07", Role.NODE, use=use)
        with pytest.raises(SignatureRefused, match="is not one for signing messages"):
            opened(Signer(key, tls, lambda: 1).seal(TOPIC, PAYLOAD))
    made, _ = signer()
    curve = generate_private_key(SECP256R1())
    right = made.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(right.subject)
        .issuer_name(right.issuer)
        .public_key(curve.public_key())
        .serial_number(99)
        .not_valid_before(right.not_valid_before_utc)
        .not_valid_after(right.not_valid_after_utc)
    )
    for extension in right.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    of_curve = builder.sign(FLEET.ca.key, hashes.SHA256())
    sealed = made.seal(TOPIC, PAYLOAD)
    cert = base64.b64encode(of_curve.public_bytes(Encoding.DER))
    with pytest.raises(SignatureRefused, match="is not one for signing messages"):
        opened(re.sub(rb'"cert":"[^"]+"', b'"cert":"%b"' % cert, sealed))


def test_a_certificate_without_a_use_is_refused() -> None:
    made, key = signer()
    right = made.certificate
    bare = (
        x509.CertificateBuilder()
        .subject_name(right.subject)
        .issuer_name(right.issuer)
        .public_key(key.public_key())
        .serial_number(98)
        .not_valid_before(right.not_valid_before_utc)
        .not_valid_after(right.not_valid_after_utc)
        .sign(FLEET.ca.key, hashes.SHA256())
    )
    with pytest.raises(SignatureRefused, match=r"its certificate cannot be used: No .*extension"):
        opened(Signer(key, bare, lambda: 1).seal(TOPIC, PAYLOAD))


def test_who_signed_is_held_to_role_and_name_and_both_are_said() -> None:
    sealed = signer()[0].seal(TOPIC, PAYLOAD)
    for role, name, expected in (
        (Role.COORDINATOR, None, "a certificate of the role coordinator"),
        (Role.COORDINATOR, "pi-07", "coordinator 'pi-07'"),
        (Role.NODE, "pi-08", "node 'pi-08'"),
    ):
        with pytest.raises(SignatureRefused, match=f"signed by node 'pi-07', expected {expected}$"):
            FLEET.verifier().open(TOPIC, sealed, role=role, name=name)
        with pytest.raises(MessageUnsigned, match=f"not signed, expected the signature of {expected};"):
            FLEET.verifier().open(TOPIC, PAYLOAD, role=role, name=name)
    assert FLEET.verifier().open(TOPIC, sealed, role=Role.NODE) == PAYLOAD


def test_what_is_older_than_what_was_heard_is_a_repetition_and_the_same_is_none() -> None:
    key = Ed25519PrivateKey.generate()
    certificate = signing_certificate(FLEET.ca, key, "pi-07", Role.NODE)
    older, newer = (Signer(key, certificate, partial(int, n)).seal(TOPIC, PAYLOAD) for n in (5, 6))
    verifier = FLEET.verifier()
    for _ in range(2):
        assert verifier.open(TOPIC, newer, role=Role.NODE) == PAYLOAD
    with pytest.raises(MessageRepeated, match="issued it at 5, and at 6 something newer"):
        verifier.open(TOPIC, older, role=Role.NODE)


def test_a_signer_needs_the_certificate_of_its_key() -> None:
    with pytest.raises(ValueError, match=r"signing key and .* certificate do not belong together"):
        Signer(Ed25519PrivateKey.generate(), signer()[0].certificate, lambda: 1)
