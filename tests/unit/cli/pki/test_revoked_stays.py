"""A revoked certificate stays revoked, whatever clock, backup or race."""

from __future__ import annotations

import base64
import json
import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from apiary.errors import ApiaryError, NotReady, SettingsError
from apiary.identity.authority import KeyUse
from apiary.identity.certificates import Trust, private_pem
from apiary.identity.revocations import list_number, load_lists, revoked_serials, without_loss
from apiary.identity.roles import Identity, Role
from apiary.settings import Settings
from apiary_cli.pki import broker_files
from apiary_cli.pki.device import USES, Device, read_request
from apiary_cli.pki.enrolment import Enrolment, Refusal
from apiary_cli.pki.folder import CaFolder, always, make_here, unless_taken
from apiary_cli.pki.index import MAX_PAUSE_S, Index
from apiary_cli.pki.tokens import Tokens

START = datetime(2026, 12, 1, 8, 0, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
PI = Identity("pi-07", Role.NODE)


class Orchard:
    """An authority with a clock that the test sets, its broker's folder, and devices."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.now = START
        self.ca = CaFolder.create(folder / "pki", "orchard", wall=self.clock)
        self.settings = Settings.model_validate(
            {"pki": {"state_dir": folder / "pki", "broker_dir": folder / "broker"}}
        )

    def clock(self) -> float:
        return self.now

    def enrol(self, name: str, role: Role = Role.NODE, **more: Any) -> Device:
        device = Device(self.folder / name, USES[role], wall=self.clock)
        keys = read_request(device.request(name, renew=more.pop("new_keys", False)), name, device.uses)
        made = self.ca.issue(Identity(name, role), keys, 365, **more)
        device.install(self.ca.answer(made))
        return device

    def serials(self, device: Device) -> set[int]:
        return {device.certificate(use).serial_number for use in device.uses}

    def publish(self) -> None:
        assert broker_files.apply(self.ca, self.settings) == []

    def published(self) -> x509.CertificateRevocationList:
        (crl,) = load_lists((self.folder / "broker" / "crl.pem").read_bytes())
        return crl


@pytest.fixture
def orchard(tmp_path: Path) -> Orchard:
    return Orchard(tmp_path)


# -- the clock


def test_a_clock_years_ahead_issues_nothing_and_forgets_nobody(orchard: Orchard) -> None:
    thief = orchard.serials(orchard.enrol("thief"))
    orchard.ca.revoke("thief")
    orchard.now += 2 * 365 * DAY_S
    with pytest.raises(
        NotReady, match=r"clock says 2028-11-30 .* last used at 2026-12-01, more than 365 days"
    ):
        orchard.enrol("pi-07")
    orchard.ca.revoke("nobody")
    assert thief <= revoked_serials(load_lists(orchard.ca.crl))
    orchard.now = START + 60
    assert {i.name for i in orchard.ca.issued()} == {"thief"}
    orchard.enrol("pi-07")
    orchard.ca.revoke("pi-07")
    assert thief <= revoked_serials(load_lists(orchard.ca.crl))


def test_a_revoked_serial_stays_on_the_list_for_ever(orchard: Orchard) -> None:
    thief = orchard.serials(orchard.enrol("thief"))
    orchard.ca.revoke("thief")
    for _ in range(8):
        orchard.now += 300 * DAY_S
        orchard.enrol("pi-07", new_keys=False)
        orchard.ca.revoke("pi-07")
    assert thief <= revoked_serials(load_lists(orchard.ca.crl))


def test_a_revocation_needs_no_right_clock_and_misses_nothing_that_one_calls_over(orchard: Orchard) -> None:
    """By a clock a year ahead the certificate is over; by the others' clocks it is not."""
    device = orchard.enrol("thief")
    for years in (1.01, 8, -40):
        orchard.now = START + years * 365 * DAY_S
        orchard.ca.revoke("thief")
    assert orchard.serials(device) <= revoked_serials(load_lists(orchard.ca.crl))
    orchard.now = START
    assert {i.state(START) for i in orchard.ca.issued()} == {"revoked"}


def test_a_clock_that_is_right_after_a_long_pause_is_confirmed(orchard: Orchard) -> None:
    orchard.enrol("pi-07")
    orchard.now += MAX_PAUSE_S + DAY_S
    with pytest.raises(NotReady, match=r"apiary pki clock --confirm"):
        orchard.enrol("pi-08")
    orchard.ca.confirm_clock()
    orchard.enrol("pi-08")


def test_a_service_that_runs_keeps_the_time_and_notes_no_jump(orchard: Orchard) -> None:
    for _ in range(4):
        orchard.now += 200 * DAY_S
        orchard.ca.keep_time()
    orchard.enrol("pi-07")
    changed = orchard.ca.index().changed
    orchard.now += 5 * 365 * DAY_S
    with pytest.raises(NotReady):
        orchard.ca.keep_time()
    assert orchard.ca.index().changed == changed


def test_a_wrong_clock_takes_nobodys_rights_at_the_broker(orchard: Orchard) -> None:
    orchard.enrol("hive", Role.COORDINATOR)
    right = broker_files.acl(orchard.ca, orchard.settings)
    orchard.now += 3 * 365 * DAY_S
    assert "user hive" in right
    assert broker_files.acl(orchard.ca, orchard.settings) == right


def test_each_list_counts_from_later_than_the_one_before_and_never_from_the_future(orchard: Orchard) -> None:
    """OpenSSL lets nobody in by a list from tomorrow: tests/broker/security/test_lists_of_revoked.py."""
    since = []
    for i, at in enumerate((0, 0, 0.4, 50 * DAY_S, -30, 0)):
        orchard.now = START + at
        orchard.enrol(f"pi-{i}")
        orchard.ca.revoke(f"pi-{i}")
        (crl,) = load_lists(orchard.ca.crl)
        assert list_number(crl) == i + 1
        since.append(crl.last_update_utc)
    assert since == sorted(set(since))
    assert since[-1] < datetime.fromtimestamp(START, UTC)


def test_the_first_list_after_one_from_the_future_counts_at_once(orchard: Orchard) -> None:
    """The version before stamped its lists by the clock."""
    now = datetime.fromtimestamp(START, UTC)
    ahead = orchard.ca.authority.revocations({5: now}, 4, now + timedelta(days=90))
    (orchard.folder / "pki" / "crl.pem").write_bytes(ahead.public_bytes(Encoding.PEM))
    orchard.enrol("pi-07")
    orchard.ca.revoke("pi-07")
    (crl,) = load_lists(orchard.ca.crl)
    assert crl.last_update_utc <= now
    assert list_number(crl) == 5 and 5 in revoked_serials([crl])


def test_a_dead_clock_founds_no_authority(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"clock says 1970-01-01 00:01, which cannot be.*timedatectl"):
        CaFolder.create(tmp_path / "pki", "orchard", wall=lambda: 60.0)
    assert not (tmp_path / "pki").exists()


def test_certificates_that_do_not_hold_here_replace_none_that_do(orchard: Orchard) -> None:
    device = orchard.enrol("pi-07")
    before = device.certificate(KeyUse.CLIENT)
    orchard.now += 200 * DAY_S  # the authority's clock alone
    keys = read_request(device.request("pi-07", renew=True), "pi-07", device.uses)
    answer = orchard.ca.answer(orchard.ca.issue(PI, keys, 365))
    orchard.now = START
    with pytest.raises(NotReady, match="the clock here says 2026-12-01 08:00: this one, or the authority's"):
        device.install(answer)
    assert device.certificate(KeyUse.CLIENT) == before


# -- a backup


@pytest.fixture
def restored(orchard: Orchard) -> set[int]:
    """Serials that were revoked, and given to the broker and to pi-08, after the backup that is back now."""
    orchard.enrol("pi-07")
    orchard.publish()
    shutil.copytree(orchard.folder / "pki", orchard.folder / "backup")
    thief = orchard.serials(orchard.enrol("thief"))
    orchard.ca.revoke("pi-07")
    orchard.ca.revoke("thief")
    orchard.publish()
    orchard.enrol("pi-08")
    gone = revoked_serials([orchard.published()])
    assert len(gone) == 4 and thief < gone
    shutil.rmtree(orchard.folder / "pki")
    shutil.copytree(orchard.folder / "backup", orchard.folder / "pki")
    orchard.ca = CaFolder(orchard.folder / "pki", wall=orchard.clock)
    assert revoked_serials(load_lists(orchard.ca.crl)) == set()
    return set(gone)


def test_a_restored_authority_publishes_no_list_that_names_less(orchard: Orchard, restored: set[int]) -> None:
    number = list_number(orchard.published())
    orchard.publish()
    assert revoked_serials([orchard.published()]) == restored
    assert list_number(orchard.published()) > number
    assert orchard.ca.standing("pi-07") == []
    orchard.enrol("pi-09")
    orchard.ca.revoke("pi-09")
    orchard.publish()
    assert restored < revoked_serials([orchard.published()])


def test_a_locked_authority_publishes_no_lower_number_either(orchard: Orchard, restored: set[int]) -> None:
    before = orchard.published()
    key = orchard.ca.authority.key
    (orchard.folder / "pki" / "ca.key").write_bytes(private_pem(key, b"secret"))
    locked = CaFolder(orchard.folder / "pki", wall=orchard.clock)
    (trouble,) = broker_files.apply(locked, orchard.settings)
    assert "is locked" in trouble
    assert orchard.published() == before


def test_a_device_keeps_what_it_knows_and_gives_it_back(orchard: Orchard, restored: set[int]) -> None:
    device = Device(orchard.folder / "pi-08", USES[Role.NODE], wall=orchard.clock)
    answer = orchard.ca.answer(())
    device.store_lists(answer)
    assert revoked_serials(device.lists()) == restored
    # A list whose number is higher by now, and which still lacks them.
    for name in ("a", "b", "c", "d"):
        orchard.enrol(name)
        orchard.ca.revoke(name)
    newer = orchard.ca.answer(())
    device.store_lists(newer)
    assert revoked_serials(device.lists()) == restored | revoked_serials(newer.crls)
    assert list_number(device.lists()[0]) == list_number(newer.crls[0])
    Trust([orchard.ca.certificate], device.lists())
    # The service takes it from a party that it knows.
    held = device.forgotten(newer)
    assert held is not None
    desk = Enrolment(orchard.ca, orchard.settings)
    with pytest.raises(Refusal, match="shows a valid certificate"):
        desk.absorb({"crl": held.decode()}, None)
    mine = orchard.enrol("pi-10")
    serial = f"{mine.certificate(KeyUse.CLIENT).serial_number:x}"
    assert desk.absorb({"crl": held.decode()}, serial) == len(restored)
    assert restored < revoked_serials([orchard.published()])
    final = orchard.ca.answer(())
    assert device.forgotten(final) is None
    device.store_lists(final)
    assert len(device.lists()) == 1


def test_a_list_of_another_authority_is_not_taken_back(orchard: Orchard, tmp_path: Path) -> None:
    other = CaFolder.create(tmp_path / "other", "orchard", wall=orchard.clock)
    with pytest.raises(ValueError, match="not a list of this authority"):
        orchard.ca.absorb(other.crl)
    # A broker that had another authority before gets the new one's.
    (orchard.folder / "broker").mkdir()
    (orchard.folder / "broker" / "crl.pem").write_bytes(other.crl)
    orchard.publish()
    assert (orchard.folder / "broker" / "crl.pem").read_bytes() == orchard.ca.crl


def test_a_power_cut_between_list_and_index_leaves_the_revoked_revoked(orchard: Orchard) -> None:
    device = orchard.enrol("thief")
    before = (orchard.folder / "pki" / "index.json").read_bytes()
    orchard.ca.revoke("thief")
    (orchard.folder / "pki" / "index.json").write_bytes(before)
    assert orchard.ca.standing("thief") != []
    serial = f"{device.certificate(KeyUse.CLIENT).serial_number:x}"
    body = {"request": device.request("thief", renew=True).decode(), "force": True}
    with pytest.raises(Refusal, match="a valid one"):
        Enrolment(orchard.ca, orchard.settings).renew(body, serial)
    orchard.enrol("pi-07")
    assert orchard.ca.standing("thief") == []


def test_of_many_lists_those_stay_that_are_needed(orchard: Orchard) -> None:
    ca, now = orchard.ca.authority, datetime.fromtimestamp(START, UTC)
    a, b, c = (ca.revocations(dict.fromkeys(s, now), n, now) for n, s in enumerate(((1, 2), (1,), (3, 1))))
    assert without_loss([a, b, c]) == [c, a]
    assert without_loss([a, a]) == [a]
    assert without_loss([]) == []


def test_an_index_of_the_version_before_is_read(orchard: Orchard) -> None:
    orchard.enrol("pi-07")
    file = orchard.folder / "pki" / "index.json"
    raw = json.loads(file.read_text())
    for key in ("changed", "elsewhere"):
        del raw[key]
    file.write_text(json.dumps(raw))
    index = orchard.ca.index()
    assert index.changed == pytest.approx(START, abs=1)
    assert index.believes(START + MAX_PAUSE_S - 60) and not index.believes(START + MAX_PAUSE_S + 60)


# -- a race


def overtaken(orchard: Orchard, act: Callable[[], object]) -> CaFolder:
    """The same authority; `act` happens once all was looked at, just before the lock is taken."""
    file = orchard.folder / "pki" / "ca.key"
    file.write_bytes(private_pem(orchard.ca.authority.key, b"secret"))

    def passphrase() -> bytes:
        act()
        return b"secret"

    return CaFolder(orchard.folder / "pki", passphrase, orchard.clock)


@pytest.mark.parametrize("force", [True, False])
def test_a_renewal_that_a_revocation_overtakes_is_refused(orchard: Orchard, force: bool) -> None:
    device = orchard.enrol("thief")
    orchard.now = START + (0 if force else 300 * DAY_S)  # due
    serial = f"{device.certificate(KeyUse.CLIENT).serial_number:x}"
    body = {"request": device.request("thief", renew=True).decode(), "force": force}
    racing = overtaken(orchard, lambda: orchard.ca.revoke("thief"))
    with pytest.raises(Refusal, match="a valid one"):
        Enrolment(racing, orchard.settings).renew(body, serial)
    assert orchard.ca.standing("thief") == []


def test_a_join_that_a_revocation_overtakes_is_refused(orchard: Orchard) -> None:
    tokens = Tokens(orchard.folder / "pki")
    device = Device(orchard.folder / "d", USES[Role.NODE])
    body = {"name": "pi-07", "token": tokens.make(PI, 3600), "request": device.request("pi-07").decode()}

    def revoke() -> None:
        tokens.cancel("pi-07")
        orchard.ca.revoke("pi-07")

    racing = overtaken(orchard, revoke)
    with pytest.raises(Refusal, match="no such token"):
        Enrolment(racing, orchard.settings).join(body)
    assert orchard.ca.standing("pi-07") == []


def test_two_that_enrol_one_name_at_once_do_not_both_get_it(orchard: Orchard) -> None:
    whom = Identity("hive", Role.COORDINATOR)
    racing = overtaken(orchard, lambda: orchard.enrol("hive"))
    with pytest.raises(SettingsError, match="is a node already"):
        make_here(
            racing, whom, USES[whom.role], orchard.folder / "d", 365, permit=unless_taken(whom, again=False)
        )
    orchard.enrol("hive", permit=always)


# -- half a character


@pytest.mark.parametrize("key", ["name", "token", "request", "role"])
@pytest.mark.parametrize("value", ["\ud800", "pi\udfff", "\x00", "ä", [], {}, 1e999, None, True])
def test_what_no_text_can_be_is_refused_and_no_bug(orchard: Orchard, key: str, value: object) -> None:
    device = Device(orchard.folder / "d", USES[Role.NODE])
    body: dict[str, Any] = {"name": "pi-07", "token": "t", "request": device.request("pi-07").decode()}
    with pytest.raises((Refusal, ApiaryError)) as refused:
        Enrolment(orchard.ca, orchard.settings).join({**body, key: value})
    assert str(refused.value).encode()


@pytest.mark.parametrize("key", ["certificate", "proof", "request"])
def test_a_proof_that_no_text_can_be_is_refused(orchard: Orchard, key: str) -> None:
    body = {"certificate": "c", "proof": base64.b64encode(b"p").decode(), "request": "r", key: "\udc80"}
    with pytest.raises(Refusal):
        Enrolment(orchard.ca, orchard.settings).renew(body, None)


def test_the_index_is_pure_data() -> None:
    assert Index.decode(Index(changed=3.0).encode()) == Index(changed=3.0)
    with pytest.raises(ValueError, match="version 9"):
        Index.decode({"version": 9})


def test_the_log_shows_what_was_forgotten(
    orchard: Orchard, restored: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        orchard.publish()
    assert "named 4 certificates that the authority had forgotten" in caplog.text
