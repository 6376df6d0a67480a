"""`apiary pki` as it is typed: the folder it keeps, what a device gets, and what it refuses."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from apiary.errors import NotReady, SettingsError
from apiary.files import stamp
from apiary.identity.authority import KeyUse
from apiary.identity.roles import Identity, Role
from apiary.settings import Settings
from apiary_cli.main import main
from apiary_cli.pki.device import Device
from apiary_cli.pki.enrolment import MAX_ADDRESSES, PER_ADDRESS, PER_ADDRESS_S, Enrolment, Refusal, limiter
from apiary_cli.pki.enrolment_server import make_service, show_certificate
from apiary_cli.pki.folder import CaFolder
from apiary_cli.pki.tokens import MAX_USES, Tokens, seconds

Pki = Callable[..., Any]
PI = Identity("pi", Role.NODE)


@pytest.fixture
def pki(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pki:
    """Runs `apiary pki ... --json` in a folder of its own; its answer, or (exit code, what it said)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0, sets: tuple[str, ...] = ()) -> Any:
        capsys.readouterr()
        flags = [word for pair in sets for word in ("--set", pair)]
        got = main(["pki", *flags, *words, "--json"])
        said = capsys.readouterr()
        assert got == code, said.err
        return json.loads(said.out) if code == 0 else said.err

    return run


@pytest.fixture
def service(pki: Pki, tmp_path: Path) -> Iterator[str]:
    """The enrolment service of a new fleet, on a free port; its URL."""
    pki("init", "--fleet", "orchard")
    logging.getLogger().handlers.clear()  # they write to what is captured of the set-up
    settings = Settings.model_validate(
        {"pki": {"state_dir": tmp_path / "pki", "listen": "127.0.0.1", "port": 0}}
    )
    running = make_service(CaFolder(tmp_path / "pki"), settings)
    thread = threading.Thread(target=running.run)
    thread.start()
    yield f"https://127.0.0.1:{running.port}"
    running.close()
    thread.join()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_device_by_hand_and_its_keys_are_for_its_owner_alone(pki: Pki, tmp_path: Path) -> None:
    sha256 = pki("init", "--fleet", "orchard")["sha256"]
    pki("request", "pi-07", "--dir", "d", "--out", "r.pem")
    pki("enrol", "pi-07", "--request", "r.pem", "--out", "a.pem")
    assert pki("install", "a.pem", "--dir", "d", "--ca-sha256", sha256)["name"] == "pi-07"
    for secret in ("pki/ca.key", "d/tls/key.pem", "d/signing/key.pem", "pki/warden/tls/key.pem"):
        assert mode(tmp_path / secret) == 0o600
    assert b"PRIVATE" not in (tmp_path / "r.pem").read_bytes() + (tmp_path / "a.pem").read_bytes()
    cert = x509.load_pem_x509_certificate((tmp_path / "d/tls/cert.pem").read_bytes())
    assert cert.subject.rfc4514_string() == "CN=pi-07,OU=node"
    listed = pki("list", "--name", "pi-07")["certificates"]
    assert [(c["use"], c["state"], c["role"]) for c in listed] == [
        ("client", "valid", "node"),
        ("signing", "valid", "node"),
    ]


def test_what_cannot_be_is_refused_with_what_to_do(pki: Pki, tmp_path: Path) -> None:
    assert "no authority in pki: `apiary pki init`" in pki("enrol", "x", "--dir", "d", code=2)
    pki("init")
    assert "holds an authority already" in pki("init", code=2)
    pki("enrol", "pi-07", "--dir", "d")
    assert "enrolled already: renew it" in pki("enrol", "pi-07", "--dir", "e", code=2)
    assert "'pi-07' is a node already" in pki("enrol", "pi-07", "--role", "operator", "--dir", "e", code=2)
    assert "cannot stand in a topic" in pki("enrol", "a/b", "--dir", "e", code=2)
    assert "is that of `apiary pki` itself" in pki("enrol", "pki", "--dir", "e", code=2)
    assert "--san: each host name" in pki("enrol", "broker", "--role", "server", "--dir", "e", code=2)
    assert "not due yet: --force" in pki("renew", "pi-07", "--dir", "d", code=2)
    assert "has no certificate" in pki("revoke", "pi-99", code=2)
    (tmp_path / "junk").write_bytes(b"\xff" * 100)
    assert "0 certificate requests, expected 2" in pki("enrol", "pi-9", "--request", "junk", code=5)
    assert "not certificates as" in pki("install", "junk", "--dir", "d", code=5)
    pki("request", "pi-10", "--dir", "f", "--out", "r.pem")
    pki("enrol", "pi-10", "--request", "r.pem", "--out", "a.pem")
    assert "made for another device" in pki("install", "a.pem", "--dir", "d", code=2)
    assert "has the fingerprint" in pki("install", "a.pem", "--dir", "f", "--ca-sha256", "ab" * 32, code=2)
    assert not (tmp_path / "f/tls/cert.pem").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("acl",),
        ("apply",),
        ("serve",),
        ("revoke", "pi-07"),
        ("renew", "pi-07", "--dir", "d"),
        ("token", "pi-07"),
        ("token", "pi-07", "--cancel"),
    ],
    ids=" ".join,
)
def test_before_there_is_an_authority_each_says_how_to_found_one(pki: Pki, words: tuple[str, ...]) -> None:
    assert "no authority in pki: `apiary pki init` founds one" in pki(*words, code=2)


@pytest.mark.parametrize("role", ["node", "viewer", "operator", "coordinator"])
def test_the_line_that_a_token_comes_with_joins(
    pki: Pki, service: str, role: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["pki", "token", "ann", "--role", role]) == 0
    _, token, line = capsys.readouterr().out.splitlines()
    apiary, *words = line.split()
    assert apiary == "apiary"
    assert token not in line  # a command's words are every local user's to read
    words = [service if word.startswith("https://HOST:") else word for word in words]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    assert pki(*words[1:], "--dir", "d")["name"] == "ann"


@pytest.mark.parametrize("piped", ["", "\n", "x" * 200, "t\u00f6ken"])
def test_what_is_no_token_is_not_sent(pki: Pki, monkeypatch: pytest.MonkeyPatch, piped: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    words = ("join", "https://127.0.0.1:9", "--name", "p", "--dir", "d", "--ca-sha256", "ab" * 32)
    assert "no token: `apiary pki token NAME`" in pki(*words, code=2)


def test_a_locked_authority_wants_its_passphrase(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery\n")
    pki("init", sets=("pki.passphrase_file='right'",))
    assert b"ENCRYPTED" in (tmp_path / "pki/ca.key").read_bytes()
    assert "is locked: set pki.passphrase_file" in pki("enrol", "a", "--dir", "a", code=2)
    wrong = pki("enrol", "a", "--dir", "a", code=2, sets=("pki.passphrase_file='wrong'",))
    assert "wrong passphrase" in wrong
    pki("enrol", "a", "--dir", "a", sets=("pki.passphrase_file='right'",))


def test_renewing_gives_new_keys_and_leaves_the_old_ones_valid_until_their_end(
    pki: Pki, tmp_path: Path
) -> None:
    pki("init")
    pki("enrol", "pi-07", "--dir", "d")
    before = (tmp_path / "d/tls/key.pem").read_bytes()
    pki("renew", "pi-07", "--dir", "d", "--force")
    assert (tmp_path / "d/tls/key.pem").read_bytes() != before
    assert not list((tmp_path / "d").rglob("key.new.pem"))
    assert [c["state"] for c in pki("list", "--name", "pi-07")["certificates"]] == ["valid"] * 4


def test_a_renewal_cut_between_certificate_and_key_is_finished_later(pki: Pki, tmp_path: Path) -> None:
    pki("init")
    pki("enrol", "pi-07", "--dir", "d")
    pki("request", "pi-07", "--dir", "d", "--new-keys", "--out", "r.pem")
    new = (tmp_path / "d/tls/key.new.pem").read_bytes()
    pki("renew", "pi-07", "--request", "r.pem", "--out", "a.pem", "--force")
    # Power goes after the certificate was written.
    answer = x509.load_pem_x509_certificates((tmp_path / "a.pem").read_bytes())
    from cryptography.hazmat.primitives.serialization import Encoding

    (tmp_path / "d/tls/cert.pem").write_bytes(answer[0].public_bytes(Encoding.PEM))
    pki("install", "a.pem", "--dir", "d")
    assert (tmp_path / "d/tls/key.pem").read_bytes() == new
    assert not list((tmp_path / "d").rglob("key.new.pem"))


def test_revoking_and_the_broker_files(pki: Pki, tmp_path: Path) -> None:
    told = ("pki.broker_dir='mosquitto'", "pki.reload=['touch', 'reloaded']")
    pki("init", sets=told)
    pki("enrol", "pi-07", "--dir", "d", sets=told)
    pki("enrol", "alice", "--role", "operator", "--dir", "o", sets=told)
    (tmp_path / "reloaded").unlink()
    serials = pki("revoke", "pi-07", sets=told)["revoked"]
    crl = x509.load_pem_x509_crl((tmp_path / "mosquitto/crl.pem").read_bytes())
    assert {f"{c.serial_number:x}" for c in crl} == set(serials)
    assert len(serials) == 2
    acl = (tmp_path / "mosquitto/acl.conf").read_text()
    assert "user pi-07\ntopic deny #" in acl
    assert "user alice\n" in acl
    assert (tmp_path / "reloaded").exists()
    pki("enrol", "pi-07", "--dir", "d2", sets=told)
    assert "user pi-07" not in (tmp_path / "mosquitto/acl.conf").read_text()


def test_one_certificate_is_revoked_by_its_serial_and_no_other(pki: Pki) -> None:
    pki("init")
    pki("enrol", "pi-07", "--dir", "d")
    wrong = pki("revoke", "pi-07", "--serial", "abc", code=2)
    assert "'pi-07' has no certificate with the serial abc: `apiary pki list`" in wrong
    client, signing = (c["serial"] for c in pki("list", "--name", "pi-07")["certificates"])
    assert pki("revoke", "pi-07", "--serial", client)["revoked"] == [client]
    assert pki("revoke", "pi-07", "--serial", client)["revoked"] == []
    states = {c["serial"]: c["state"] for c in pki("list", "--name", "pi-07")["certificates"]}
    assert states == {client: "revoked", signing: "valid"}


@pytest.mark.parametrize("year", [2000, 2100])
def test_a_clock_in_the_wrong_year_issues_nothing(pki: Pki, tmp_path: Path, year: int) -> None:
    """It would be a certificate that is over at once, or that outlives its authority."""
    pki("init")
    wrong = datetime(year, 1, 1, tzinfo=UTC).timestamp()
    ca = CaFolder(tmp_path / "pki", wall=lambda: wrong)
    with pytest.raises(NotReady, match=f"clock says {year}-01-01 00:00, and the authority holds from"):
        ca.issue(PI, [(KeyUse.CLIENT, generate_private_key(SECP256R1()).public_key())], 365)
    assert [i.name for i in ca.issued()] == ["pki"]


def test_apply_says_what_it_did(pki: Pki, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pki("init")
    assert main(["pki", "apply"]) == 0
    told = capsys.readouterr().out
    assert told == "nothing was done: neither pki.broker_dir nor pki.reload is set\n"
    (tmp_path / "broker").mkdir()
    flags = ["--set", "pki.broker_dir=broker", "--set", "pki.reload=['touch', 'reloaded']"]
    assert main(["pki", "apply", *flags]) == 0
    assert capsys.readouterr().out == "ca.pem, crl.pem and acl.conf are in broker; ran: touch reloaded\n"
    assert (tmp_path / "reloaded").exists()


def test_a_broker_that_is_not_told_is_said_and_the_revocation_stands(pki: Pki, tmp_path: Path) -> None:
    pki("init")
    pki("enrol", "pi-07", "--dir", "d")
    assert "ended with 1" in pki("revoke", "pi-07", sets=("pki.reload=['false']",), code=4)
    assert {c["state"] for c in pki("list", "--name", "pi-07")["certificates"]} == {"revoked"}


def test_a_torn_index_is_refused_and_not_begun_anew(pki: Pki, tmp_path: Path) -> None:
    pki("init")
    (tmp_path / "pki/index.json").write_text('{"version": 1, "issu')
    assert "is torn: restore it from a backup" in pki("enrol", "a", "--dir", "a", code=8)


def test_many_at_once_lose_no_certificate(pki: Pki, tmp_path: Path) -> None:
    pki("init")
    import subprocess
    import sys

    words = [sys.executable, "-m", "apiary_cli", "pki", "enrol"]
    children = [
        subprocess.Popen([*words, f"pi-{i}", "--dir", f"d{i}", "--json"], cwd=tmp_path) for i in range(4)
    ]
    assert [c.wait(60) for c in children] == [0] * 4
    assert len([c for c in pki("list")["certificates"] if c["role"] == "node"]) == 8


# -- the service


def test_joining_with_a_token(pki: Pki, service: str, tmp_path: Path) -> None:
    made = pki("token", "pi-08")
    assert made["token"] not in "".join(p.read_text() for p in (tmp_path / "pki").glob("*.json"))
    (tmp_path / "token").write_text(made["token"])
    words = ("join", service, "--name", "pi-08", "--ca-sha256", made["ca_sha256"], "--dir", "d")
    assert pki(*words, "--token-file", "token")["name"] == "pi-08"
    assert mode(tmp_path / "d/signing/key.pem") == 0o600
    assert not (tmp_path / "token").exists()
    # The same device whose answer was lost may ask again, and what it had is revoked; another may not.
    pki(*words, "--token", made["token"])
    states = [c["state"] for c in pki("list", "--name", "pi-08")["certificates"]]
    assert states == ["revoked", "revoked", "valid", "valid"]
    other = ("join", service, "--name", "pi-08", "--ca-sha256", made["ca_sha256"], "--dir", "thief")
    assert "or it was used" in pki(*other, "--token", made["token"], code=5)


def test_tokens_are_for_one_name_one_role_and_a_time(pki: Pki, service: str, tmp_path: Path) -> None:
    made = pki("token", "pi-08")
    ca = ("--ca-sha256", made["ca_sha256"], "--token", made["token"])
    assert "no such token for node 'pi-09'" in pki(
        "join", service, "--name", "pi-09", "--dir", "a", *ca, code=5
    )
    wrong = ("join", service, "--name", "pi-08", "--role", "operator", "--dir", "b", *ca)
    assert "no such token for operator" in pki(*wrong, code=5)
    # What was mistaken used nothing up: the token is not bound to who asked with it.
    assert pki("join", service, "--name", "pi-08", "--dir", "a8", *ca)["name"] == "pi-08"
    pki("token", "pi-08", "--cancel")
    assert "no such token" in pki("join", service, "--name", "pi-08", "--dir", "a", *ca, code=5)
    now = [0.0]
    tokens = Tokens(tmp_path, lambda: now[0])
    token = tokens.make(PI, seconds("30m"))
    now[0] = 1801
    assert tokens.take(token, PI, "k") is None


def test_a_token_that_is_asked_too_often_is_used_up(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.make(PI, 60)
    assert [tokens.take(token, PI, "k") is not None for _ in range(MAX_USES + 1)] == [True] * MAX_USES + [
        False
    ]
    for bad in ("0h", "5", "h", "91d", "1w", ""):
        with pytest.raises(SettingsError, match="--ttl"):
            seconds(bad)


def test_an_unknown_authority_gets_no_token(pki: Pki, service: str) -> None:
    made = pki("token", "pi-08")
    words = ("join", service, "--name", "pi-08", "--dir", "d", "--token", made["token"])
    assert "expected abababab" in (said := pki(*words, "--ca-sha256", "ab" * 32, code=5))
    assert "No token was sent" in said
    pki(*words, "--ca-sha256", made["ca_sha256"])


def test_no_service_says_so(pki: Pki) -> None:
    words = (
        "join",
        "https://127.0.0.1:9",
        "--name",
        "p",
        "--dir",
        "d",
        "--token",
        "t",
        "--ca-sha256",
        "ab" * 32,
    )
    assert "does `apiary pki serve` run there?" in pki(*words, code=4)
    assert "expected https://" in pki("join", "http://x", *words[2:], code=2)


def test_renewing_with_the_certificate_in_use(pki: Pki, service: str, tmp_path: Path) -> None:
    made = pki("token", "pi-08")
    pki(
        "join",
        service,
        "--name",
        "pi-08",
        "--dir",
        "d",
        "--token",
        made["token"],
        "--ca-sha256",
        made["ca_sha256"],
    )
    renew = ("renew", "--url", service, "--dir", "d")
    assert pki(*renew)["renewed"] is False
    before = (tmp_path / "d/tls/key.pem").read_bytes()
    assert pki(*renew, "--force")["renewed"] is True
    assert (tmp_path / "d/tls/key.pem").read_bytes() != before
    pki(*renew, "--force")
    pki(*renew, "--force")
    assert "renewed several times lately" in pki(*renew, "--force", code=5)
    pki("revoke", "pi-08")
    assert "needs the certificate in use, and a valid one" in pki(*renew, "--force", code=5)
    other = ("pki.state_dir='other'",)
    pki("init", sets=other)
    pki("enrol", "pi-08", "--dir", "s", sets=other)
    (tmp_path / "s/tls/ca.pem").write_bytes((tmp_path / "pki/ca.pem").read_bytes())
    assert service in pki("renew", "--url", service, "--dir", "s", "--force", code=5)


def test_a_server_renews_by_the_signature_of_its_key(pki: Pki, service: str, tmp_path: Path) -> None:
    """Its certificate opens no connection, so the request itself says who asks."""
    pki("enrol", "broker", "--role", "server", "--san", "10.0.0.5", "--dir", "b", sets=("pki.days=0.01",))
    renew = ("renew", "--url", service, "--dir", "b")
    before = (tmp_path / "b/tls/key.pem").read_bytes()
    assert pki(*renew)["renewed"] is True  # a quarter of an hour is left of the hour and a quarter
    assert (tmp_path / "b/tls/key.pem").read_bytes() != before
    old, new = pki("list", "--name", "broker")["certificates"]
    assert (new["role"], new["use"], new["names"]) == ("server", "server", ["10.0.0.5"])
    assert new["not_after"] > old["not_after"] + 300 * 86_400
    assert pki(*renew)["renewed"] is False
    # Another key under the same certificate, and another authority's certificate, prove nothing.
    pki("enrol", "other", "--role", "server", "--san", "10.0.0.6", "--dir", "o")
    (tmp_path / "o/tls/cert.pem").write_bytes((tmp_path / "b/tls/cert.pem").read_bytes())
    assert "not signed by the key" in pki("renew", "--url", service, "--dir", "o", "--force", code=5)
    own = ("pki.state_dir='thief'",)
    pki("init", sets=own)
    pki("enrol", "broker", "--role", "server", "--san", "10.0.0.5", "--dir", "t", sets=own)
    (tmp_path / "t/tls/ca.pem").write_bytes((tmp_path / "pki/ca.pem").read_bytes())
    assert "no certificate of this authority" in pki(
        "renew", "--url", service, "--dir", "t", "--force", code=5
    )
    pki("revoke", "broker")
    assert "needs the certificate in use" in pki(*renew, "--force", code=5)
    # A device's certificate opens connections, and is to be used for that.
    pki("enrol", "pi-08", "--dir", "d")
    device = Device(tmp_path / "d", (KeyUse.CLIENT, KeyUse.SIGNING))
    request = device.request("pi-08", renew=True)
    proof = base64.b64encode(device.proof(KeyUse.CLIENT, request)).decode()
    shown = (tmp_path / "d/tls/cert.pem").read_text()
    body = {"request": request.decode(), "certificate": shown, "proof": proof}
    desk = Enrolment(CaFolder(tmp_path / "pki"), Settings())
    with pytest.raises(Refusal, match="needs the certificate in use"):
        desk.renew(body, None)


def ended(pki: Pki, tmp_path: Path, name: str, *words: str) -> None:
    """A party whose certificates end before this returns."""
    pki("enrol", name, *words, "--dir", name, sets=("pki.days=0.00004",))  # 3.5 s
    pem = (tmp_path / name / "tls" / "cert.pem").read_bytes()
    time.sleep(
        max(0.0, x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp() - time.time()) + 0.1
    )


def test_a_device_that_was_off_until_its_certificates_ended_comes_back_by_one_command(
    pki: Pki, service: str, tmp_path: Path
) -> None:
    ended(pki, tmp_path, "pi-08")
    renew = ("renew", "--url", service, "--dir", "pi-08")
    before = (tmp_path / "pi-08/tls/key.pem").read_bytes()
    assert "of node 'pi-08' is over: `apiary pki readmit pi-08` on the server" in pki(*renew, code=5)
    assert pki("readmit", "pi-08")["readmitted"] == ["pi-08"]
    # Only the key of the certificate that is over, and only that: another party's does not count.
    ended(pki, tmp_path, "pi-09")
    assert "of node 'pi-09' is over" in pki("renew", "--url", service, "--dir", "pi-09", code=5)
    assert pki(*renew)["renewed"] is True
    assert (tmp_path / "pi-08/tls/key.pem").read_bytes() != before
    assert pki(*renew)["renewed"] is False
    # A revocation takes it back.
    pki("readmit", "pi-09")
    pki("revoke", "pi-09")
    assert "a valid one" in pki("renew", "--url", service, "--dir", "pi-09", code=5)
    assert "was revoked: `apiary pki token pi-09 --again`" in pki("readmit", "pi-09", code=2)
    assert "has no certificate here" in pki("readmit", "pi-99", code=2)


def test_a_broker_and_a_coordinator_that_were_off_come_back_the_same_way(
    pki: Pki, service: str, tmp_path: Path
) -> None:
    ended(pki, tmp_path, "broker", "--role", "server", "--san", "127.0.0.1")
    ended(pki, tmp_path, "hive", "--role", "coordinator")
    assert "user hive" in pki("acl")["acl"]
    pki("readmit", "broker", "hive", "--ttl", "1h")
    for name in ("broker", "hive"):
        assert pki("renew", "--url", service, "--dir", name)["renewed"] is True


def test_the_list_of_revoked_ones_comes_with_each_renewal(pki: Pki, service: str, tmp_path: Path) -> None:
    pki("enrol", "pi-08", "--dir", "d")
    crl = tmp_path / "d/tls/crl.pem"
    same = stamp(crl)
    renew = ("renew", "--url", service, "--dir", "d")
    pki(*renew)
    assert stamp(crl) == same
    pki("enrol", "pi-09", "--dir", "e")
    pki("revoke", "pi-09")
    pki(*renew)
    assert crl.read_bytes() == (tmp_path / "pki/crl.pem").read_bytes()


def test_a_service_that_runs_for_years_shows_a_new_certificate_of_its_own(pki: Pki, tmp_path: Path) -> None:
    pki("init")
    settings = Settings.model_validate({"pki": {"state_dir": tmp_path / "pki", "days": 0.01}})
    ca, context = CaFolder(tmp_path / "pki"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    show_certificate(ca, settings, context, at_start=True)
    first = (tmp_path / "pki/enrolment/tls/cert.pem").read_bytes()
    # A certificate begins an hour ago; a quarter of an hour is left of this one.
    lasting = Settings.model_validate({"pki": {"state_dir": tmp_path / "pki"}})
    show_certificate(ca, lasting, context)
    second = (tmp_path / "pki/enrolment/tls/cert.pem").read_bytes()
    show_certificate(ca, lasting, context)
    assert first != second == (tmp_path / "pki/enrolment/tls/cert.pem").read_bytes()


def test_what_was_renewed_is_not_said_to_end_soon(pki: Pki, tmp_path: Path) -> None:
    pki("init")
    pki("enrol", "pi-07", "--dir", "d", sets=("pki.days=10",))
    assert len(pki("list", "--expiring", "30")["certificates"]) == 2
    pki("renew", "pi-07", "--dir", "d", "--force")
    assert pki("list", "--expiring", "30")["certificates"] == []


def test_the_service_bounds_what_it_takes(pki: Pki, service: str) -> None:
    import http.client
    import socket
    import ssl

    host, port = service.removeprefix("https://").split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(verb: str, path: str, body: bytes = b"", *, length: int | None = None) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=context)
        connection.putrequest(verb, path)
        connection.putheader("Content-Length", str(len(body) if length is None else length))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read(500).decode()

    assert ask("GET", "/v1/ca")[0] == 200
    assert ask("GET", "/../etc/passwd")[0] == 404
    assert ask("POST", "/v1/join", length=99_999_999)[0] == 413
    assert ask("POST", "/v1/crl", length=40_000)[0] == 413
    assert ask("POST", "/v1/join", b"[" * 20_000)[0] == 400
    assert ask("POST", "/v1/join", b'{"name": 3}')[0] == 400
    assert ask("POST", "/v1/renew", b"{}")[0] == 403
    assert ask("PUT", "/v1/join")[0] == 405
    for _ in range(10):
        status, said = ask("POST", "/v1/join", b"{}")
    assert (status, "refused too often" in said) == (429, True)
    # Plain words get no answer.
    with socket.create_connection((host, int(port)), 5) as s, contextlib.suppress(ConnectionResetError):
        s.sendall(b"GET / HTTP/1.1\r\n\r\n")
        s.settimeout(5)
        assert b"HTTP" not in s.recv(100)


def test_a_device_joins_while_others_are_silent_or_slow(pki: Pki, service: str) -> None:
    import socket

    from apiary.http.places import HttpLimits

    host, port = service.removeprefix("https://").split(":")
    here = [socket.create_connection((host, int(port)), 5) for _ in range(2 * HttpLimits().max_of_address)]
    try:
        for slow in here[::2]:
            slow.sendall(b"\x16\x03\x01")  # of a handshake
        made = pki("token", "pi-08")
        words = ["join", service, "--name", "pi-08", "--dir", "d", "--token", made["token"]]
        assert pki(*words, "--ca-sha256", made["ca_sha256"])["name"] == "pi-08"
    finally:
        for s in here:
            s.close()


def test_who_is_refused_too_often_waits_and_nobody_else() -> None:
    now = [0.0]
    refused = limiter(lambda: now[0])
    for _ in range(PER_ADDRESS):
        assert refused.wait_s("10.0.0.1") == 0
        refused.failed("10.0.0.1")
    assert refused.wait_s("10.0.0.1") == PER_ADDRESS_S
    assert refused.wait_s("10.0.0.2") == 0
    now[0] = PER_ADDRESS_S + 1
    assert refused.wait_s("10.0.0.1") == 0


def test_addresses_that_are_remembered_are_bounded() -> None:
    refused = limiter(lambda: 0.0)
    for i in range(MAX_ADDRESSES + 50):
        refused.failed(str(i))
    assert len(refused) == MAX_ADDRESSES


def test_what_is_long_over_leaves_the_index_unless_it_was_revoked(pki: Pki, tmp_path: Path) -> None:
    pki("init")
    for name in ("pi-07", "pi-08"):
        pki("enrol", name, "--dir", name, sets=("pki.days=1",))
    pki("revoke", "pi-08")
    later = CaFolder(tmp_path / "pki", wall=lambda: time.time() + 200 * 86_400)
    later.keep_time()
    assert {i.name for i in later.issued()} == {"pki", "pi-07", "pi-08"}
    later = CaFolder(tmp_path / "pki", wall=lambda: time.time() + 400 * 86_400)
    later.keep_time()
    assert {i.name for i in later.issued()} == {"pki", "pi-08"}
