"""`apiary image`: what it writes is what Raspberry Pi OS reads, and its script joins the fleet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.places import ROOT

from apiary.settings import Settings, to_toml
from apiary_cli.main import main
from apiary_cli.pki.enrolment_server import make_service
from apiary_cli.pki.folder import CaFolder

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0wT1Wk3d5bTn0p0V9w0mE1m8z4c9a2k7o1y3u5i7o9 me@desk"
CMDLINE = "console=tty1 root=PARTUUID=0d1d-02 rootwait init=/usr/lib/raspberrypi-sys-mods/firstboot\n"
URL = "https://broker.local:8443"
Image = Callable[..., Any]


@pytest.fixture
def image(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Image:
    """`apiary image card ...` with an authority at hand; its answer, or what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card").mkdir()
    (tmp_path / "me.pub").write_text(KEY + "\n")
    with zipfile.ZipFile(tmp_path / "apiary_fl-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("apiary/constraints/py{}{}.txt".format(*sys.version_info[:2]), "numpy==1.26.4\n")
    assert main(["pki", "init", "--fleet", "orchard", "--json"]) == 0

    def run(*words: str, code: int = 0, **flags: str | None) -> Any:
        told: dict[str, str | None] = {
            "name": "pi-07",
            "ssh_key": "me.pub",
            "broker": "broker.local",
            "enrolment": URL,
            "wheel": "apiary_fl-0.1.0-py3-none-any.whl",
            **flags,
        }
        given = [w for k, v in told.items() if v is not None for w in (f"--{k.replace('_', '-')}", v)]
        capsys.readouterr()
        assert main(["image", "card", *given, *words, "--json"]) == code
        said = capsys.readouterr()
        return json.loads(said.out) if code == 0 else said.err

    return run


def read_json(path: Path) -> Any:
    return json.loads("".join(line for line in path.read_text().splitlines(True) if not line.startswith("#")))


def test_a_card_for_trixie(image: Image, tmp_path: Path) -> None:
    (tmp_path / "barn.txt").write_text('hay "and" straw\n')
    wifi = {"wifi_ssid": 'Barn: "2"', "wifi_password_file": "barn.txt", "wifi_country": "de"}
    told = image(os="trixie", **wifi)
    assert {"user-data", "network-config", "meta-data", "apiary/first-boot.sh", "apiary/token"} <= set(
        told["files"]
    )
    card = tmp_path / "card"
    assert (card / "user-data").read_text().startswith("#cloud-config\n")
    data = read_json(card / "user-data")
    assert data["hostname"] == "pi-07"
    assert data["users"][0]["ssh_authorized_keys"] == [KEY]
    assert data["users"][0]["lock_passwd"] is True and data["ssh_pwauth"] is False
    network = read_json(card / "network-config")["network"]
    point = network["wifis"]["wlan0"]["access-points"]['Barn: "2"']
    assert len(point["password"]) == 64 and network["wifis"]["wlan0"]["regulatory-domain"] == "DE"
    assert "hay" not in "".join(p.read_text(errors="replace") for p in card.rglob("*") if p.is_file())
    first = read_json(card / "meta-data")["instance-id"]
    image("--again", os=None)  # found out from the card now
    assert read_json(card / "meta-data")["instance-id"] != first


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init is not installed")
def test_cloud_init_itself_takes_it(image: Image, tmp_path: Path) -> None:
    image(os="trixie")
    words = ["cloud-init", "schema", "--config-file", str(tmp_path / "card" / "user-data")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wireless_key_is_that_of_the_standard(image: Image, tmp_path: Path) -> None:
    """The test vector of IEEE 802.11i, annex H.4.2."""
    (tmp_path / "p").write_text("password")
    image(os="trixie", wifi_ssid="IEEE", wifi_password_file="p", wifi_country="US")
    network = read_json(tmp_path / "card" / "network-config")["network"]
    key = network["wifis"]["wlan0"]["access-points"]["IEEE"]["password"]
    assert key == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"


def test_a_card_for_bookworm_and_the_same_once_more(image: Image, tmp_path: Path) -> None:
    card = tmp_path / "card"
    (card / "cmdline.txt").write_text(CMDLINE)
    assert image()["os"] == "bookworm"
    told = tomllib.loads((card / "custom.toml").read_text())
    assert told["config_version"] == 1
    assert told["system"]["hostname"] == "pi-07"
    assert told["ssh"] == {"enabled": True, "password_authentication": False, "authorized_keys": [KEY]}
    assert told["user"]["password_encrypted"] is True
    once = (card / "cmdline.txt").read_text()
    assert once.startswith(CMDLINE.strip() + " systemd.run=/boot/firmware/apiary/first-run.sh ")
    assert once.count("\n") == 1
    image("--again")
    assert (card / "cmdline.txt").read_text() == once
    # What the script takes away again is what was added.
    script = (card / "apiary" / "first-run.sh").read_text().replace("/boot/firmware", str(card))
    sed = next(line for line in script.splitlines() if line.startswith("sed"))
    subprocess.run(["sh", "-c", sed], check=True)
    assert (card / "cmdline.txt").read_text() == CMDLINE


def test_the_settings_on_the_card_are_ones_that_a_node_takes(image: Image, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        'federation = "orchard"\n[edge]\nrefresh_s = 30\n[edge.camera]\nkind = "usb"\n'
    )
    image(os="trixie", settings="node.toml")
    told = tomllib.loads((tmp_path / "card" / "apiary" / "apiary.toml").read_text())
    settings = Settings.model_validate(told)
    assert (settings.federation, settings.edge.node_id, settings.edge.camera.kind) == (
        "orchard",
        "pi-07",
        "usb",
    )
    assert settings.edge.state_dir == Path("/var/lib/apiary/edge"), "the play would begin another one"
    assert settings.security.key == Path("/etc/apiary/signing/key.pem")
    assert settings.broker.tls and settings.broker.port == 8883


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ({"name": "pi_07"}, 2, "is no host name"),
        ({"name": "x; rm -rf /"}, 2, "cannot stand in a topic"),
        ({"user": "Root!"}, 2, "is no user name"),
        ({"ssh_key": "apiary_fl-0.1.0-py3-none-any.whl"}, 2, "not public SSH keys"),
        ({"enrolment": "http://broker"}, 2, "expected https"),
        ({"enrolment": "https://broker:port"}, 2, "expected https"),
        ({"enrolment": "https://fd00::5:8443"}, 2, "expected https"),
        ({"enrolment": "https://bro ker:8443"}, 2, "expected https"),
        ({"broker": "mqtt://broker"}, 2, "--broker 'mqtt://broker' is a URL"),
        ({"broker": "broker:8883"}, 2, "--broker 'broker:8883' has a port in it"),
        ({"token": "t"}, 2, "belong together"),
        ({"wheel": "https://x/y.whl"}, 2, "needs --wheel-sha256"),
        ({"wheel": "gone.whl"}, 3, "No such file"),
        ({"wheel_sha256": "ab" * 32}, 3, "expected abab"),
        ({"wifi_ssid": "Barn"}, 2, "needs --wifi-password-file"),
        ({"wifi_ssid": "Barn", "wifi_password_file": "me.pub", "wifi_country": "DE"}, 2, "8 to 63"),
        ({"settings": "bad.toml"}, 2, "edge.nonsense"),
        ({"os": None}, 3, "is not the boot partition"),
        ({"os": "bookworm"}, 3, "cmdline.txt is missing"),
    ],
)
def test_what_cannot_be_is_refused_before_the_card_is_touched(
    image: Image, tmp_path: Path, flags: dict[str, str | None], code: int, message: str
) -> None:
    (tmp_path / "bad.toml").write_text("[edge]\nnonsense = 1\n")
    assert message in image(code=code, **{"os": "trixie", **flags})
    assert list((tmp_path / "card").iterdir()) == []


@pytest.mark.parametrize(
    "text", ["plain", 'quo"te', "back\\slash", "new\nline", "ümlaut", "\U0001f41d", "\x7f\x01"]
)
def test_texts_come_back_from_toml_as_they_went_in(text: str) -> None:
    told = {"a": text, "b": {"c d": [text, text], "e": {"f": 1.5, "g": True}}, "h": 3}
    assert tomllib.loads(to_toml(told)) == told


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """Programs that change the machine: they write down how they were called. `pip` installs a link."""
    folder = tmp_path / "bin"
    folder.mkdir()
    apiary = Path(sys.executable).with_name("apiary")
    pip = f'#!/bin/sh\\necho "pip $*" >> "{tmp_path}/calls"\\nln -sf {apiary} "$(dirname "$0")/apiary"\\n'
    last = "for last; do :; done; "
    venv = f'{last}mkdir -p "$last/bin"; printf \'{pip}\' > "$last/bin/pip"; chmod +x "$last/bin/pip"'
    scripts = {
        "useradd": "",
        "usermod": "",
        "systemctl": "",
        "install": last + 'mkdir -p "$last"; [ "$5" != 0755 ] || mkdir -p "$6"',
        "python3": f'[ "$1" = -c ] && exec {sys.executable} "$@"; {venv}',
    }
    for name, body in scripts.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/calls"\n{body}\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def service(image: Image, tmp_path: Path) -> Iterator[str]:
    told = {"state_dir": tmp_path / "pki", "listen": "127.0.0.1", "port": 0}
    running = make_service(CaFolder(tmp_path / "pki"), Settings.model_validate({"pki": told}))
    thread = threading.Thread(target=running.run)
    thread.start()
    yield f"https://127.0.0.1:{running.port}"
    running.close()
    thread.join()


def test_the_script_on_the_card_joins_and_cleans_up(
    image: Image, service: str, stand_ins: Path, tmp_path: Path
) -> None:
    image(os="trixie", enrolment=service)
    boot, root = tmp_path / "card" / "apiary", tmp_path / "root"
    for folder in ("etc/systemd/system", "etc/apiary", "opt/apiary", "var/lib/apiary"):
        (root / folder).mkdir(parents=True)
    script = boot / "first-boot.sh"
    # There is no user `apiary` here; all else is as on the Pi.
    script.write_text(script.read_text().replace("--owner apiary", ""))
    environment = {
        **os.environ,
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "FIRST_BOOT_FOLDER": str(boot),
        "FIRST_BOOT_ROOT": str(root),
    }

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(script)], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    whole = (boot / "apiary_fl-0.1.0-py3-none-any.whl").read_bytes()
    (boot / "apiary_fl-0.1.0-py3-none-any.whl").write_bytes(b"torn")
    assert start().returncode != 0
    (boot / "apiary_fl-0.1.0-py3-none-any.whl").write_bytes(whole)
    done = start()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "etc/apiary/tls/cert.pem").is_file() and (root / "etc/apiary/signing/key.pem").is_file()
    assert (root / "etc/apiary/apiary.toml").is_file()
    assert os.access(root / "usr/local/bin/apiary", os.X_OK)
    assert not boot.exists()
    calls = (tmp_path / "calls").read_text()
    for call in (
        "systemctl enable systemd-time-wait-sync.service",
        "systemctl enable --now apiary-edge.service",
        "systemctl disable apiary-first-boot.service",
    ):
        assert call in calls
    assert "--only-binary :all:" in calls and "[edge]" in calls
    constraints = root / "opt/apiary/constraints.txt"
    assert f"--constraint {constraints}" in calls and constraints.read_text() == "numpy==1.26.4\n"
    play = (ROOT / "deploy/roles/common/templates/hardening.j2").read_text().splitlines()
    guards = {line for line in play if "=" in line and not line.startswith(("#", "CapabilityBoundingSet"))}
    for unit in ("apiary-edge.service", "apiary-renew.service"):
        lines = (root / "etc/systemd/system" / unit).read_text().splitlines()
        assert guards <= set(lines), f"{unit} has more rights than the play's: {guards - set(lines)}"
        assert [line for line in lines if line.startswith("CapabilityBoundingSet=")]
        verify(root / "etc/systemd/system" / unit)
    assert "OnCalendar=daily" in (root / "etc/systemd/system/apiary-renew.timer").read_text()
    assert [i.name for i in CaFolder(tmp_path / "pki").issued() if i.role == "node"] == ["pi-07", "pi-07"]


def test_the_units_are_ones_that_systemd_reads(image: Image, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    image(os="trixie")
    verify(tmp_path / "card" / "apiary" / "apiary-first-boot.service")


def verify(unit: Path) -> None:
    """Where systemd is installed, it knows each line of the unit."""
    if shutil.which("systemd-analyze") is None:
        return
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Unknown" not in done.stderr and "Failed to parse" not in done.stderr, done.stderr
