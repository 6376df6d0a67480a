"""A sealed message opens for whom it is, as it was, once it is not older: everything else is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stand_ins.fleet_keys import NOW, Fleet, MemoryMarks, authority, signing_certificate

from apiary.errors import MessageAhead, MessageRepeated, SettingsError, SignatureRefused
from apiary.identity.authority import KeyUse, Term
from apiary.identity.certificates import Trust, identity_of
from apiary.identity.replay_guard import DiskMarks
from apiary.identity.roles import Identity, Role
from apiary.identity.signing import MAX_SEAL_BYTES, Signer, Verifier

QUICK = settings(max_examples=300)
TOPIC = "apiary/default/round/current"
FLEET = Fleet()
COORDINATOR = FLEET.signer("hive", Role.COORDINATOR)
NODE = FLEET.signer("pi-07", Role.NODE)
OFFER = "apiary/default/node/pi-07/offer"
PAYLOAD = b'{"v":1,"run":"r","round":3}'
SEALED = COORDINATOR.seal(TOPIC, PAYLOAD)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def open_sealed(
    sealed: bytes, *, topic: str = TOPIC, role: Role = Role.COORDINATOR, name: str | None = None
) -> bytes:
    return FLEET.verifier().open(topic, sealed, role=role, name=name)


@QUICK
@given(st.dictionaries(st.text(), values, min_size=1, max_size=5))
def test_what_was_sealed_comes_out_as_it_went_in(message: dict[str, object]) -> None:
    payload = json.dumps(message).encode()
    sealed = COORDINATOR.seal(TOPIC, payload)
    assert len(sealed) - len(payload) <= MAX_SEAL_BYTES
    assert open_sealed(sealed) == payload
    # Pairs, not an object: a message may have such a key of its own.
    pairs = json.loads(sealed, object_pairs_hook=list)
    assert [key for key, _ in pairs[-3:]] == ["issued", "cert", "sig"]


@QUICK
@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, flip: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= flip
    with pytest.raises(SignatureRefused, match=r"round/current"):
        open_sealed(bytes(changed))


@QUICK
@given(st.integers(0, len(SEALED) - 1), st.binary(max_size=3))
def test_any_cut_or_insertion_is_refused(at: int, more: bytes) -> None:
    for changed in (SEALED[:at] + more, SEALED[:at] + more + b"x" + SEALED[at:], more + SEALED[at + 1 :]):
        if changed != SEALED:
            with pytest.raises(SignatureRefused):
                open_sealed(changed)


@QUICK
@given(st.binary(max_size=2_000))
def test_arbitrary_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(SignatureRefused, match="not signed"):
        open_sealed(payload)


@QUICK
@given(st.binary(min_size=3, max_size=600))
def test_arbitrary_certificates_are_refused(der: bytes) -> None:
    cert = base64.b64encode(der)
    sealed = b'{"v":1,"issued":5,"cert":"%b","sig":"%b"}' % (cert, base64.b64encode(bytes(64)))
    with pytest.raises(SignatureRefused, match="certificate cannot be used"):
        open_sealed(sealed)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: open_sealed(PAYLOAD), r"not signed, expected .* role coordinator; .* security.cert"),
        (lambda: open_sealed(SEALED, topic="apiary/other/round/current"), r"'hive' does not fit .* topic"),
        (
            lambda: open_sealed(SEALED, role=Role.OPERATOR),
            r"signed by coordinator 'hive', expected .* operator",
        ),
        (
            lambda: open_sealed(NODE.seal(OFFER, PAYLOAD), topic=OFFER, role=Role.NODE, name="pi-08"),
            r"signed by node 'pi-07', expected node 'pi-08'",
        ),
        (lambda: open_sealed(NODE.seal(TOPIC, PAYLOAD)), r"signed by node 'pi-07', expected .* coordinator"),
        (
            lambda: open_sealed(
                FLEET.signer("hive", Role.COORDINATOR, ca=authority("thief")).seal(TOPIC, PAYLOAD)
            ),
            r"'hive', whose certificate is issued by CN=thief, which is not this fleet's authority",
        ),
        (
            # The same name on the outside, another key underneath.
            lambda: open_sealed(FLEET.signer("hive", Role.COORDINATOR, ca=authority()).seal(TOPIC, PAYLOAD)),
            r"not this fleet's authority",
        ),
    ],
)
def test_who_may_not_say_it_is_refused_by_name(attempt: Callable[[], bytes], message: str) -> None:
    with pytest.raises(SignatureRefused, match=message):
        attempt()


def test_expired_and_not_yet_valid_certificates_are_refused_with_both_clocks() -> None:
    fleet = Fleet()
    sealed = fleet.signer("hive", Role.COORDINATOR).seal(TOPIC, PAYLOAD)
    verifier = fleet.verifier()
    fleet.later(days=29)
    verifier.open(TOPIC, sealed, role=Role.COORDINATOR)
    fleet.later(days=2)
    with pytest.raises(SignatureRefused, match=r"expired at 2026-12-20 .* 2026-12-21 12:00 UTC\): renew it"):
        verifier.open(TOPIC, sealed, role=Role.COORDINATOR)
    fleet.later(days=-32)
    with pytest.raises(
        SignatureRefused, match=r"not valid before 2026-11-20 11:00.* 2026-11-19.*is it right\?"
    ):
        verifier.open(TOPIC, sealed, role=Role.COORDINATOR)


def test_a_new_list_revokes_at_once_and_by_serial_alone() -> None:
    fleet = Fleet()
    old, new = fleet.signer("pi-07", Role.NODE), fleet.signer("pi-07", Role.NODE)
    verifier = fleet.verifier()
    verifier.open(OFFER, old.seal(OFFER, PAYLOAD), role=Role.NODE)
    verifier.trust = fleet.trust(old.certificate)
    with pytest.raises(SignatureRefused, match=r"node 'pi-07', whose certificate is revoked \(serial"):
        verifier.open(OFFER, old.seal(OFFER, PAYLOAD), role=Role.NODE)
    verifier.open(OFFER, new.seal(OFFER, PAYLOAD), role=Role.NODE)


def test_a_list_that_the_authority_did_not_sign_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="revoked certificates of CN=orchard is not signed"):
        Trust([FLEET.ca.certificate], [authority().revocations({}, 1, NOW)])


@QUICK
@given(st.permutations(range(6)))
def test_only_what_is_not_older_is_taken_and_repetition_is_no_offence(order: list[int]) -> None:
    sealed = [COORDINATOR.seal(TOPIC, PAYLOAD) for _ in range(6)]
    verifier = FLEET.verifier()
    newest = -1
    for i in order:
        if i >= newest:
            newest = i
            for _ in range(2):
                verifier.open(TOPIC, sealed[i], role=Role.COORDINATOR)
        else:
            with pytest.raises(SignatureRefused, match=r"a repetition: coordinator 'hive' issued it at \d+"):
                verifier.open(TOPIC, sealed[i], role=Role.COORDINATOR)


def test_signers_and_topics_have_marks_of_their_own() -> None:
    verifier = FLEET.verifier()
    first, other = FLEET.signer("pi-1", Role.NODE), FLEET.signer("pi-2", Role.NODE)
    early = [s.seal(t, PAYLOAD) for s in (first, other) for t in (OFFER, TOPIC)]
    verifier.open(OFFER, first.seal(OFFER, PAYLOAD), role=Role.NODE)
    for sealed, topic in zip(early[1:], (TOPIC, OFFER, TOPIC), strict=True):
        verifier.open(topic, sealed, role=Role.NODE)
    with pytest.raises(SignatureRefused, match="repetition"):
        verifier.open(OFFER, early[0], role=Role.NODE)


def test_what_is_refused_leaves_no_mark() -> None:
    marks = MemoryMarks()
    verifier = Verifier(FLEET.trust(), marks, lambda: NOW)
    for sealed in (
        FLEET.signer("hive", Role.COORDINATOR, ca=authority()).seal(TOPIC, PAYLOAD),
        PAYLOAD,
        SEALED[:-3],
    ):
        with pytest.raises(SignatureRefused):
            verifier.open(TOPIC, sealed, role=Role.COORDINATOR)
    assert marks.newest == {}


def test_certificates_for_tls_do_not_sign_messages() -> None:
    key = Ed25519PrivateKey.generate()
    tls = signing_certificate(FLEET.ca, key, "hive", Role.COORDINATOR, use=KeyUse.CLIENT)
    with pytest.raises(SignatureRefused, match="not one for signing messages"):
        open_sealed(Signer(key, tls, lambda: 1).seal(TOPIC, PAYLOAD))


def test_a_signer_wants_its_own_certificate() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        Signer(Ed25519PrivateKey.generate(), NODE.certificate, lambda: 1)
    for payload in (b"{}", b"[1]", b"", b'"x"'):
        with pytest.raises(ValueError, match="only a JSON object"):
            NODE.seal(OFFER, payload)


def test_no_device_issues_certificates_for_others() -> None:
    """A device's own key signs a certificate in the authority's name: the wrong signature."""
    fleet = Fleet()
    thief = authority("orchard")
    forged = Signer(
        key := Ed25519PrivateKey.generate(),
        signing_certificate(thief, key, "hive", Role.COORDINATOR),
        lambda: 1,
    )
    with pytest.raises(SignatureRefused, match="not this fleet's authority"):
        fleet.verifier().open(TOPIC, forged.seal(TOPIC, PAYLOAD), role=Role.COORDINATOR)


def test_the_subject_says_name_and_role_and_nothing_else_passes() -> None:
    assert identity_of(NODE.certificate) == Identity("pi-07", Role.NODE)
    with pytest.raises(ValueError, match="0 fields organizational unit"):
        identity_of(FLEET.ca.certificate)
    key = generate_private_key(SECP256R1())
    odd = FLEET.ca.issue(
        key.public_key(), Identity("pi/07", Role.NODE), KeyUse.CLIENT, term=Term(NOW, 1), serial=77
    )
    with pytest.raises(ValueError, match="common name 'pi/07' cannot stand in a topic"):
        identity_of(odd)
    assert odd.public_bytes(Encoding.DER)


def test_a_stolen_name_that_signs_from_the_next_year_locks_nobody_out() -> None:
    fleet = Fleet()
    thief = fleet.signer("pi-07", Role.NODE)
    marks = DiskMarks(None, NOW.timestamp)
    verifier = fleet.verifier(marks=marks)
    now_ms = int(NOW.timestamp() * 1000)
    fleet.issued = now_ms + 180 * 86_400_000
    with pytest.raises(
        MessageAhead, match=r"issued it at 2027-05-19 12:00, more than 1 day ahead of the clock"
    ):
        verifier.open(OFFER, thief.seal(OFFER, PAYLOAD), role=Role.NODE)
    fleet.issued = now_ms
    verifier.open(OFFER, thief.seal(OFFER, PAYLOAD), role=Role.NODE)
    # As far ahead as it can be; the name's next certificate counts at once.
    fleet.issued = now_ms + 86_400_000 - 2
    verifier.open(OFFER, thief.seal(OFFER, PAYLOAD), role=Role.NODE)
    verifier.trust = fleet.trust(thief.certificate)
    key = Ed25519PrivateKey.generate()
    term = Term(NOW + timedelta(minutes=5), 30)
    whom = Identity("pi-07", Role.NODE)
    made = fleet.ca.issue(key.public_key(), whom, KeyUse.SIGNING, term=term, serial=4711)
    fleet.issued = now_ms + 1_000
    owner = Signer(key, made, fleet._issue)
    first = owner.seal(OFFER, PAYLOAD)
    verifier.open(OFFER, owner.seal(OFFER, PAYLOAD), role=Role.NODE)
    with pytest.raises(MessageRepeated):
        verifier.open(OFFER, first, role=Role.NODE)


def test_the_last_message_of_a_key_that_was_renewed_does_not_come_back() -> None:
    fleet = Fleet()
    old = fleet.signer("hive", Role.COORDINATOR)
    verifier = fleet.verifier(marks=DiskMarks(None, NOW.timestamp))
    last = old.seal(TOPIC, PAYLOAD)
    verifier.open(TOPIC, last, role=Role.COORDINATOR)
    new = fleet.signer("hive", Role.COORDINATOR)
    verifier.open(TOPIC, new.seal(TOPIC, PAYLOAD), role=Role.COORDINATOR)
    with pytest.raises(MessageRepeated):
        verifier.open(TOPIC, last, role=Role.COORDINATOR)


@QUICK
@given(st.integers(0, 10**16 - 1))
def test_any_number_is_judged_and_never_a_bug(issued: int) -> None:
    sealed = Signer(NODE._key, NODE.certificate, lambda: issued).seal(OFFER, PAYLOAD)
    verifier = FLEET.verifier()
    if issued > (NOW.timestamp() + 86_400) * 1000:
        with pytest.raises(MessageAhead):
            verifier.open(OFFER, sealed, role=Role.NODE)
    else:
        verifier.open(OFFER, sealed, role=Role.NODE)
