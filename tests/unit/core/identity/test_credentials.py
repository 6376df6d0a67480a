"""The gate from files: what it refuses at the start, and that it follows files that change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.stand_ins.fleet_keys import NOW, Fleet
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.bus.outlet import Outlet
from apiary.errors import SettingsError, SignatureRefused
from apiary.identity.gate import OPEN, MessageGate
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.identity.signing import Signer
from apiary.settings import SecuritySettings
from apiary.wire import NodeId
from apiary.wire.messages import CoordinatorStatus
from apiary.wire.topics import TopicKind, Topics

T = Topics()
OFFER = T.build(TopicKind.NODE_OFFER, node=NodeId("pi-07"))
MakeGate = Callable[..., MessageGate]


class Files:
    """A fleet's files in a folder, and the clock of whoever reads them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.fleet = Fleet()
        self.now = NOW.timestamp()
        self.write("ca.pem", self.fleet.ca.certificate.public_bytes(Encoding.PEM))
        self.revoke()

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        self.now += 2
        os.utime(path, (self.now, self.now))
        return path

    def revoke(self, *signers: Signer) -> None:
        serials = {s.certificate.serial_number: NOW for s in signers}
        self.write("crl.pem", self.fleet.ca.revocations(serials, 1, NOW).public_bytes(Encoding.PEM))

    def party(self, name: str, role: Role) -> Signer:
        """`cert.pem` and `key.pem` of a new signer."""
        signer = self.fleet.signer(name, role)
        secret = signer._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.write("key.pem", secret)
        self.write("cert.pem", signer.certificate.public_bytes(Encoding.PEM))
        return signer

    def gate(self, role: Role, name: str | None = None, **changes: Path | None) -> MessageGate:
        told = {k: self.folder / f"{k}.pem" for k in ("ca", "crl", "cert", "key")}
        settings = SecuritySettings.model_validate({**told, **changes})
        return load_gate(settings, role, name, self.folder / "marks.sqlite", lambda: self.now)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_without_an_authority_the_gate_is_open_and_nothing_is_loaded() -> None:
    gate = load_gate(SecuritySettings(), Role.NODE, "pi", None, lambda: 0.0)
    assert gate is OPEN
    assert gate.seal(TopicKind.NODE_OFFER, OFFER, b'{"v":1}') == b'{"v":1}'
    assert gate.open(T.parse(OFFER), OFFER, b"whatever") == b"whatever"


def test_a_party_seals_what_its_role_says_and_nothing_else(files: Files) -> None:
    files.party("pi-07", Role.NODE)
    gate = files.gate(Role.NODE, "pi-07")
    sealed = gate.seal(TopicKind.NODE_OFFER, OFFER, b'{"v":1}')
    assert b'"sig":"' in sealed
    assert gate.open(T.parse(OFFER), OFFER, sealed) == b'{"v":1}'
    for kind in (TopicKind.NODE_STATUS, TopicKind.ROUND_CURRENT, TopicKind.NODE_WANT):
        assert gate.seal(kind, "topic", b'{"v":1}') == b'{"v":1}'


@pytest.mark.parametrize(
    ("role", "name", "message"),
    [
        (Role.NODE, "pi-08", r"security.cert .* is that of node 'pi-07', and this is node 'pi-08'"),
        (Role.COORDINATOR, None, r"is that of node 'pi-07', and this is the role coordinator"),
    ],
)
def test_somebody_elses_certificate_is_said_at_the_start(
    files: Files, role: Role, name: str | None, message: str
) -> None:
    files.party("pi-07", Role.NODE)
    with pytest.raises(SettingsError, match=message):
        files.gate(role, name)


def test_files_that_cannot_be_used_are_named(files: Files) -> None:
    files.party("pi-07", Role.NODE)
    with pytest.raises(SettingsError, match=r"security.ca /nowhere: No such file"):
        files.gate(Role.NODE, "pi-07", ca=Path("/nowhere"))
    with pytest.raises(SettingsError, match=r"security.crl .*cert.pem: not a usable PEM file"):
        files.gate(Role.NODE, "pi-07", crl=files.folder / "cert.pem")
    with pytest.raises(
        SettingsError,
        match=r"but not security.cert and security.key: the messages of a party with the role node",
    ):
        files.gate(Role.NODE, "pi-07", cert=None, key=None)
    mine = (files.folder / "cert.pem").read_bytes()
    files.party("pi-07", Role.NODE)
    files.write("cert.pem", mine)
    with pytest.raises(SettingsError, match="do not belong together"):
        files.gate(Role.NODE, "pi-07")
    with pytest.raises(ValueError, match=r"security.ca is missing"):
        SecuritySettings(cert=Path("c"), key=Path("k"))
    with pytest.raises(ValueError, match=r"belong together"):
        SecuritySettings(ca=Path("c"), key=Path("k"))


def test_who_only_reads_needs_no_certificate(files: Files) -> None:
    signer = files.party("pi-07", Role.NODE)
    gate = files.gate(Role.VIEWER, cert=None, key=None)
    assert gate.open(T.parse(OFFER), OFFER, signer.seal(OFFER, b'{"v":1}')) == b'{"v":1}'


def test_a_revocation_counts_without_a_restart(files: Files) -> None:
    signer = files.party("pi-07", Role.NODE)
    gate = files.gate(Role.VIEWER, cert=None, key=None)
    gate.open(T.parse(OFFER), OFFER, signer.seal(OFFER, b'{"v":1}'))
    files.revoke(signer)
    with pytest.raises(SignatureRefused, match="is revoked"):
        gate.open(T.parse(OFFER), OFFER, signer.seal(OFFER, b'{"v":1}'))


def test_a_list_that_is_torn_leaves_the_old_one_in_use(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    signer = files.party("pi-07", Role.NODE)
    files.revoke(signer)
    gate = files.gate(Role.VIEWER, cert=None, key=None)
    files.write("crl.pem", b"-----BEGIN X509 CRL-----\nhalf")
    with pytest.raises(SignatureRefused, match="is revoked"):
        gate.open(T.parse(OFFER), OFFER, signer.seal(OFFER, b'{"v":1}'))
    assert "what was read before stays in use" in caplog.text


def test_a_renewed_certificate_seals_all_that_is_retained_anew(files: Files) -> None:
    files.party("hive", Role.COORDINATOR)
    gate = files.gate(Role.COORDINATOR)
    broker = MemoryBroker()
    bus = broker.bus("coordinator")
    bus.poll(0)
    outlet = Outlet(bus, T, gate=gate)
    outlet.send(CoordinatorStatus(state="online", epoch="e"))
    topic = T.build(TopicKind.COORDINATOR_STATUS)
    before = broker.retained[topic]
    outlet.restore()
    assert broker.retained[topic] == before  # the very same bytes: a repetition
    files.party("hive", Role.COORDINATOR)
    gate.open(T.parse(T.build(TopicKind.NODE_WANT, node=NodeId("x"))), "x", b"")
    outlet.renew()
    assert broker.retained[topic] != before
    assert gate.open(T.parse(topic), topic, broker.retained[topic]).startswith(b'{"v":1,"state":"online"')
    after = broker.retained[topic]
    outlet.renew()
    assert broker.retained[topic] == after
