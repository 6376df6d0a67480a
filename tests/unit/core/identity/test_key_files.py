"""Power that goes between a certificate and its key: the service that starts next uses the pair that fits."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from apiary.bus.dial import tls_context
from apiary.errors import NotReady
from apiary.identity.authority import KeyUse
from apiary.identity.credentials import load_signer
from apiary.identity.roles import Identity, Role
from apiary.settings import BrokerSettings, SecuritySettings, Settings
from apiary_cli.pki.device import USES, Device, IssuedFiles, read_request
from apiary_cli.pki.enrolment_server import show_certificate
from apiary_cli.pki.folder import CaFolder

PI = Identity("pi-07", Role.NODE)


class Power(Exception):  # noqa: N818
    """Power goes."""


@pytest.fixture
def ca(tmp_path: Path) -> CaFolder:
    return CaFolder.create(tmp_path / "pki", "orchard")


def renewal(ca: CaFolder, device: Device) -> IssuedFiles:
    new = (device.folder / "tls" / "cert.pem").exists()
    keys = read_request(device.request(PI.name, renew=new), PI.name, device.uses)
    return ca.answer(ca.issue(PI, keys, 365))


def settings(device: Device) -> tuple[BrokerSettings, SecuritySettings]:
    tls, signing = device.folder / "tls", device.folder / "signing"
    broker = BrokerSettings(
        tls=True, tls_ca=tls / "ca.pem", tls_cert=tls / "cert.pem", tls_key=tls / "key.pem"
    )
    security = SecuritySettings(ca=tls / "ca.pem", cert=signing / "cert.pem", key=signing / "key.pem")
    return broker, security


@pytest.mark.parametrize("steps", range(8))
def test_at_whatever_step_power_goes_both_pairs_can_be_used(
    ca: CaFolder, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path / "d", USES[Role.NODE])
    device.install(renewal(ca, device))
    answer, left = renewal(ca, device), [steps]

    def count() -> None:
        if left[0] == 0:
            raise Power
        left[0] -= 1

    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        count()
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        try:
            device.install(answer)
        except Power:
            assert steps < 4
    broker, security = settings(device)
    assert tls_context(broker) is not None
    signer = load_signer(security, Role.NODE, PI.name, lambda: 1)
    assert signer is not None and signer.identity == PI
    # As the device's own renewal does it, later.
    device.install(answer)
    assert not list((tmp_path / "d").rglob("key.new.pem"))


def test_a_folder_that_may_not_be_written_is_used_all_the_same(
    ca: CaFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The service of a node: /etc is read-only for it."""
    device = Device(tmp_path / "d", USES[Role.NODE])
    device.install(renewal(ca, device))
    answer = renewal(ca, device)
    for use, certificate in zip(device.uses, answer.certificates, strict=True):
        folder = "tls" if use is KeyUse.CLIENT else "signing"
        (tmp_path / "d" / folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))

    def refused(self: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system")

    broker, security = settings(device)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        assert tls_context(broker) is not None
        assert load_signer(security, Role.NODE, PI.name, lambda: 1) is not None
    assert caplog.text.count("the next `apiary pki renew` moves it") == 2
    device.settle()
    assert not list((tmp_path / "d").rglob("key.new.pem"))


def test_what_is_half_there_is_no_error_of_the_settings(ca: CaFolder, tmp_path: Path) -> None:
    device = Device(tmp_path / "d", USES[Role.NODE])
    device.install(renewal(ca, device))
    broker, security = settings(device)
    for folder in ("tls", "signing"):
        (tmp_path / "d" / folder / "key.pem").rename(tmp_path / "d" / folder / "elsewhere")
    assert_not_ready(broker, security)
    other = Device(tmp_path / "other", USES[Role.NODE])
    other.install(renewal(ca, other))
    for folder in ("tls", "signing"):
        stranger = (tmp_path / "other" / folder / "key.pem").read_bytes()
        (tmp_path / "d" / folder / "key.pem").write_bytes(stranger)
    assert_not_ready(broker, security)
    for folder in ("tls", "signing"):
        (tmp_path / "d" / folder / "cert.pem").write_bytes(b"-----BEGIN CERTI")
    assert_not_ready(broker, security)


def assert_not_ready(broker: BrokerSettings, security: SecuritySettings) -> None:
    with pytest.raises(NotReady):
        tls_context(broker)
    with pytest.raises(NotReady):
        load_signer(security, Role.NODE, "pi-07", lambda: 1)


@pytest.mark.parametrize("torn", ["key", "cert", "nothing"])
def test_the_enrolment_service_mends_its_own_certificate(ca: CaFolder, tmp_path: Path, torn: str) -> None:
    lasting = Settings.model_validate({"pki": {"state_dir": tmp_path / "pki"}})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    show_certificate(ca, lasting, context, at_start=True)
    own = tmp_path / "pki" / "enrolment" / "tls"
    if torn == "key":
        (own / "key.pem").unlink()
    elif torn == "cert":
        (own / "cert.pem").write_bytes(b"")
    show_certificate(ca, lasting, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), at_start=True)
    made = len([i for i in ca.issued() if i.name == "enrolment"])
    assert made == (1 if torn == "nothing" else 2)
    shown = Device(own.parent, (KeyUse.SERVER,)).certificate(KeyUse.SERVER)
    assert datetime.now(UTC) < shown.not_valid_after_utc
