"""The authority's own replacement: its steps, what each party trusts meanwhile, and cuts of power."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from apiary.errors import SettingsError, WireError
from apiary.identity.certificates import Trust
from apiary.identity.revocations import load_lists, revoked_serials
from apiary.identity.roles import Identity, Role
from apiary.identity.succession import link, vouched
from apiary.settings import Settings
from apiary_cli.main import main
from apiary_cli.pki import replacement
from apiary_cli.pki.device import USES, Device, only_former, read_request
from apiary_cli.pki.enrolment_server import make_service
from apiary_cli.pki.folder import CaFolder
from apiary_cli.pki.tokens import Tokens

NOW = datetime.now(UTC)
PI = Identity("pi-07", Role.NODE)


@pytest.fixture
def ca(tmp_path: Path) -> CaFolder:
    return CaFolder.create(tmp_path / "pki", "orchard")


def again(ca: CaFolder) -> CaFolder:
    """As the next process sees it."""
    return CaFolder(ca.folder)


def enrol(ca: CaFolder, folder: Path, whom: Identity = PI, **more: Any) -> Device:
    device = Device(folder, USES[whom.role])
    keys = read_request(device.request(whom.name), whom.name, device.uses)
    device.install(ca.answer(ca.issue(whom, keys, 365, **more)))
    return device


def issuer(device: Device) -> str:
    return device.certificate(device.uses[0]).issuer.rfc4514_string()


@contextmanager
def serving(ca: CaFolder) -> Iterator[str]:
    """The enrolment service, started anew, as each step wants it."""
    settings = Settings.model_validate({"pki": {"state_dir": ca.folder, "listen": "127.0.0.1", "port": 0}})
    service = make_service(again(ca), settings)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{service.port}"
    service.close()
    thread.join(5)


def renew(device: Device, url: str, *more: str) -> int:
    return main(["pki", "renew", "--url", url, "--dir", str(device.folder), *more, "--json"])


def test_a_whole_replacement_with_one_that_was_off_all_the_while(ca: CaFolder, tmp_path: Path) -> None:
    there, off = enrol(ca, tmp_path / "there"), enrol(ca, tmp_path / "off", Identity("pi-08", Role.NODE))
    broker = enrol(ca, tmp_path / "broker", Identity("broker", Role.SERVER), names=["127.0.0.1"])
    card = Tokens(ca.folder).make(Identity("pi-09", Role.NODE), 3600), ca.trusted_sha256
    replacement.begin(ca, None)
    ca = again(ca)
    assert ca.trusted_sha256 == card[1] != ca.sha256
    with serving(ca) as url:
        assert renew(there, url) == 0  # not due, but for its authority
        assert issuer(there) == "CN=orchard-2" and len(there.authorities()) == 2
        before = there.certificate(there.uses[0])
        assert renew(there, url) == 0 and there.certificate(there.uses[0]) == before
        assert renew(broker, url, "--force") == 0
        assert issuer(broker) == "CN=orchard" and len(broker.authorities()) == 2
    with pytest.raises(SettingsError, match=r"certificates of the former authority: pi-08; wait"):
        replacement.move_servers(ca, anyway=False)
    with pytest.raises(SettingsError, match="--servers is next"):
        replacement.finish(ca, anyway=True)
    replacement.move_servers(ca, anyway=True)
    with serving(ca) as url:
        assert renew(broker, url, "--force") == 0
        assert issuer(broker) == "CN=orchard-2"
    with pytest.raises(SettingsError, match=r"former authority: pi-08; wait"):
        replacement.finish(ca, anyway=False)
    replacement.finish(ca, anyway=True)
    ca = again(ca)
    assert ca.trusted_sha256 == ca.sha256 and not (ca.folder / "former" / "ca.key").exists()
    with serving(ca) as url:
        # It knows the former authority alone, and believes its word.
        assert len(off.authorities()) == 1
        assert renew(off, url) == 0
        assert issuer(off) == "CN=orchard-2" and len(off.authorities()) == 1
        assert renew(there, url) == 0 and len(there.authorities()) == 1
        Trust(there.authorities(), there.lists())
        # So does nobody who was given the former one's fingerprint on paper: it is not offered any more.
        words = ["pki", "join", url, "--name", "pi-09", "--dir", str(tmp_path / "c"), "--token", card[0]]
        assert main([*words, "--ca-sha256", card[1]]) == WireError.exit_code
        assert main([*words, "--ca-sha256", ca.trusted_sha256]) == 0


def test_while_it_lasts_a_device_joins_by_either_and_one_of_the_version_before_by_the_former(
    ca: CaFolder, tmp_path: Path
) -> None:
    replacement.begin(ca, "grove")
    ca = again(ca)
    token = Tokens(ca.folder).make(PI, 3600)
    with serving(ca) as url:
        words = ["pki", "join", url, "--name", "pi-07", "--dir", str(tmp_path / "d"), "--token", token]
        assert main([*words, "--ca-sha256", ca.trusted_sha256]) == 0
    assert issuer(Device(tmp_path / "d", USES[Role.NODE])) == "CN=grove"
    device = Device(tmp_path / "old", USES[Role.NODE])
    whom = Identity("pi-old", Role.NODE)
    keys = read_request(device.request(whom.name), whom.name, device.uses)
    plain = only_former(ca.answer(ca.issue(whom, keys, 365, plain=True)))
    device.install(plain)
    assert issuer(device) == "CN=orchard" and len(device.authorities()) == 1
    assert ca.index().still_former(ca.wall(), servers=False) == ["pi-old"]


def test_what_was_revoked_stays_on_both_lists(ca: CaFolder, tmp_path: Path) -> None:
    early, late = enrol(ca, tmp_path / "a"), Identity("late", Role.NODE)
    ca.revoke("pi-07")
    replacement.begin(ca, None)
    ca = again(ca)
    newcomer = enrol(ca, tmp_path / "b", late)
    ca.revoke("late")
    gone = {d.certificate(use).serial_number for d in (early, newcomer) for use in d.uses}
    lists = load_lists(ca.crl)
    assert len(lists) == 2
    assert all(gone <= revoked_serials([crl]) for crl in lists)
    trust = Trust(ca.trust().authorities, lists)
    for device in (early, newcomer):
        why = trust.refusal(device.certificate(device.uses[0]), NOW)
        assert why is not None and why.startswith("revoked")


def test_a_party_that_does_not_know_the_new_authority_yet_reads_its_list_all_the_same(ca: CaFolder) -> None:
    """The coordinator reads the broker's list, which is there before its own ca.pem has both."""
    old = ca.certificate
    replacement.begin(ca, None)
    Trust([old], load_lists(again(ca).crl))


@pytest.mark.parametrize("steps", range(14))
def test_power_may_go_at_any_step_of_the_beginning(
    ca: CaFolder, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(ca, tmp_path / "d")
    rename, left = Path.replace, [steps]

    def replace(self: Path, target: Path) -> Path:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        try:
            replacement.begin(ca, None)
        except KeyboardInterrupt:
            pass
        else:
            assert steps >= 12
    if again(ca).index().phase != "devices" or (ca.folder / "next").exists():
        replacement.begin(again(ca), None)
    ca = again(ca)
    assert ca.index().phase == "devices" and not (ca.folder / "next").exists()
    assert issuer(enrol(ca, tmp_path / "e", Identity("pi-08", Role.NODE))) == "CN=orchard-2"
    assert [c.subject.rfc4514_string() for c in ca.trust().authorities] == ["CN=orchard-2", "CN=orchard"]


def test_nobody_vouches_for_another_key_or_after_the_end(ca: CaFolder, tmp_path: Path) -> None:
    thief = CaFolder.create(tmp_path / "thief", "thief")
    forged = CaFolder.create(tmp_path / "forged", "orchard")
    own, other = ca.certificate, thief.certificate
    good = link(ca.authority, thief.authority, 7)
    assert vouched([own], [other, own], [good], NOW) == [other, own]
    assert vouched([own], [other], [link(forged.authority, thief.authority, 7)], NOW) == []
    assert vouched([own], [forged.certificate], [good], NOW) == []
    late = own.not_valid_after_utc.replace(year=own.not_valid_after_utc.year + 1)
    assert vouched([own], [other], [good], late) == []
    # A device's certificate vouches for nobody.
    device = enrol(ca, tmp_path / "d")
    assert vouched([own], [other], [device.certificate(device.uses[0])], NOW) == []


def test_what_cannot_be_is_refused(ca: CaFolder) -> None:
    with pytest.raises(SettingsError, match="begin it"):
        replacement.move_servers(ca, anyway=False)
    with pytest.raises(SettingsError, match="its successor needs another name"):
        replacement.begin(ca, "orchard")
    replacement.begin(ca, None)
    with pytest.raises(SettingsError, match="a replacement is under way"):
        replacement.begin(again(ca), None)
