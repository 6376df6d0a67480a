"""Lists of revoked certificates: read, compared, and put together without losing a serial number."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from tests.stand_ins.fleet_keys import NOW, authority

from apiary.identity.authority import Authority, Term, found
from apiary.identity.revocations import (
    Crl,
    list_number,
    load_lists,
    revoked_serials,
    signed_by,
    without_loss,
)

OURS, THEIRS = authority("orchard"), authority("meadow")


def made(number: int, *serials: int, by: Authority = OURS) -> Crl:
    return by.revocations(dict.fromkeys(serials, NOW), number, NOW)


def numbers(crls: list[Crl]) -> list[tuple[str, int]]:
    return [(crl.issuer.rfc4514_string(), list_number(crl)) for crl in crls]


def test_every_list_of_a_file_is_read_and_one_there_must_be() -> None:
    two = [made(1, 7), made(2, 7, 8)]
    pem = b"# of the orchard\n" + b"\n".join(crl.public_bytes(Encoding.PEM) for crl in two)
    assert load_lists(pem) == two
    for none in (b"", b"# of the orchard\n"):
        with pytest.raises(ValueError, match="no list of revoked certificates"):
            load_lists(none)
    with pytest.raises(ValueError, match=r".+"):
        load_lists(pem[:-40])


def test_a_list_without_a_number_is_the_oldest() -> None:
    bare = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(OURS.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + timedelta(days=1))
        .sign(OURS.key, hashes.SHA256())
    )
    assert [list_number(crl) for crl in (bare, made(1), made(9))] == [0, 1, 9]


def test_the_serials_are_those_of_any_list() -> None:
    assert revoked_serials([made(1, 7, 8), made(2, 9)]) == {7, 8, 9}
    assert revoked_serials([made(1)]) == revoked_serials([]) == frozenset()


def test_a_list_is_of_the_authority_that_bears_its_name_and_signed_it() -> None:
    crl = made(1, 7)
    assert signed_by(crl, OURS.certificate)
    assert not signed_by(crl, THEIRS.certificate)
    assert not signed_by(crl, authority("orchard").certificate), "its name, another key"
    renamed = found(OURS.key, "meadow", Term(NOW, 1), 5)
    assert not signed_by(crl, renamed.certificate), "its key, another name"
    other_kind = Ed25519PrivateKey.generate()
    odd = (
        x509.CertificateBuilder()
        .subject_name(OURS.certificate.subject)
        .issuer_name(OURS.certificate.subject)
        .public_key(other_kind.public_key())
        .serial_number(6)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(generate_private_key(SECP256R1()), hashes.SHA256())
    )
    assert not signed_by(crl, odd)
    by_other_kind = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(OURS.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + timedelta(days=1))
        .sign(other_kind, None)
    )
    assert not signed_by(by_other_kind, odd), "an authority has a key of the curve"


def test_the_newest_list_is_enough_where_it_names_what_those_before_it_name() -> None:
    newest = made(3, 7, 8, 9)
    assert without_loss([made(1, 7), newest, made(2, 7, 8)]) == [newest]
    assert without_loss([]) == []


def test_an_older_list_stays_where_the_newest_lacks_what_it_names() -> None:
    """Its authority was restored from a backup in between."""
    kept = without_loss([made(1, 7), made(2, 7, 8), made(3, 7, 9)])
    assert numbers(kept) == [("CN=orchard", 3), ("CN=orchard", 2)]
    assert numbers(without_loss([made(1), made(2)])) == [("CN=orchard", 2)]


def test_each_authority_keeps_its_own() -> None:
    kept = without_loss([made(1, 7), made(5, 7, by=THEIRS), made(2, 7), made(4, 8, by=THEIRS)])
    assert numbers(kept) == [("CN=meadow", 5), ("CN=meadow", 4), ("CN=orchard", 2)]
    assert numbers(without_loss([made(1), made(2, by=THEIRS)])) == [("CN=meadow", 2), ("CN=orchard", 1)]
