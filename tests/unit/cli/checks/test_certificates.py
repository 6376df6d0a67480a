from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from apiary.settings import Settings
from apiary_cli.checks.certificates import certificates
from apiary_cli.checks.machine import Check
from apiary_cli.main import main


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["pki", "init", "--json"]) == 0
    assert main(["pki", "enrol", "pi-07", "--dir", "d", "--json"]) == 0
    return tmp_path / "d"


def examine(device: Path, *, days: float = 0, name: str | None = "pi-07", **broker: Any) -> dict[str, Check]:
    tls, signing = device / "tls", device / "signing"
    told = {
        "broker": {
            "host": "broker.local", "tls": True,
            "tls_ca": tls / "ca.pem", "tls_cert": tls / "cert.pem", "tls_key": tls / "key.pem", **broker,
        },
        "security": {
            "ca": tls / "ca.pem", "crl": tls / "crl.pem",
            "cert": signing / "cert.pem", "key": signing / "key.pem",
        },
    }  # fmt: skip
    now = datetime.now(UTC) + timedelta(days=days)
    return {c.name: c for c in certificates(Settings.model_validate(told), name, now)}


def test_all_well(device: Path) -> None:
    found = examine(device)
    assert {c.state for c in found.values()} == {"ok"}
    assert set(found) == {"certificate", "certificate key", "signing", "signing key"}
    assert "node 'pi-07', until" in found["signing"].what


@pytest.mark.parametrize(
    ("days", "state", "what", "mend"),
    [
        (300, "warn", "until", "it is due"),
        (366, "fail", "expired", "new token"),
        (-1, "fail", "is it right?", "clock"),
    ],
)
def test_ends_and_the_clock(device: Path, days: float, state: str, what: str, mend: str) -> None:
    for name in ("certificate", "signing"):
        check = examine(device, days=days)[name]
        assert (check.state, what in check.what, mend in check.mend) == (state, True, True)


def test_another_name_and_a_key_for_all_to_read(device: Path) -> None:
    assert "edge.node_id is 'pi-08'" in examine(device, name="pi-08")["signing"].what
    (device / "signing" / "key.pem").chmod(0o644)
    check = examine(device)["signing key"]
    assert (check.state, check.mend) == ("fail", f"chmod 600 {device / 'signing' / 'key.pem'}")


def test_another_authority_a_wrong_key_and_revoked(device: Path, tmp_path: Path) -> None:
    assert main(["pki", "--set", "pki.state_dir='other'", "init", "--json"]) == 0
    assert (
        "not this fleet's authority"
        in examine(device, tls_ca=tmp_path / "other" / "ca.pem")["certificate"].what
    )
    other = device / "signing" / "key.pem"
    mine = other.read_bytes()
    other.write_bytes((device / "tls" / "key.pem").read_bytes())
    assert "do not belong together" in examine(device)["signing"].what
    other.write_bytes(mine)
    assert main(["pki", "revoke", "pi-07", "--json"]) == 0
    (device / "tls" / "crl.pem").write_bytes((tmp_path / "pki" / "crl.pem").read_bytes())
    assert "revoked" in examine(device)["signing"].what
    (device / "tls" / "cert.pem").unlink()
    assert examine(device)["certificate"].state == "fail"


def test_no_tls_beyond_this_machine_is_said() -> None:
    far = Settings.model_validate({"broker": {"host": "broker.local"}})
    assert [c.state for c in certificates(far, None)] == ["warn"]
    assert list(certificates(Settings(), None)) == []
