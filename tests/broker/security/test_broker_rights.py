"""TLS with a certificate for each device, what is said when it fails, and the bridge of broker/examples."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apiary.bus.broker import default_conf
from apiary.bus.bus import Connected, Disconnected, Event, Received
from apiary.bus.mqtt import MqttBus
from apiary.errors import BrokerRefused, SettingsError
from apiary.settings import BrokerSettings
from apiary.wire import Digest, NodeId
from apiary.wire.topics import TopicKind, Topics

pytestmark = pytest.mark.broker
PollUntil = Callable[..., list[Event]]
EXAMPLES = Path(__file__).resolve().parents[3] / "broker" / "examples"
ACL = EXAMPLES.parent / "acl.conf"
T = Topics()
PI, OTHER = NodeId("pi-07"), NodeId("pi-08")
DIGEST = Digest("ab" * 32)


def connected(events: list[Event]) -> bool:
    return any(isinstance(e, Connected) for e in events)


def lost(events: list[Event]) -> bool:
    return any(isinstance(e, Disconnected) for e in events)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's authority, the broker's certificate for 127.0.0.1, and some devices'."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, cwd=folder, capture_output=True)

    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for authority in ("fleet-ca", "other-ca"):
        subject = ["-subj", f"/CN={authority}", "-days", "2"]
        openssl(*new, "-x509", *subject, "-keyout", f"{authority}.key", "-out", f"{authority}.crt")
    for name in ("broker", "coordinator", "watcher", PI, OTHER, "gateway"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
        signing = ["-CA", "fleet-ca.crt", "-CAkey", "fleet-ca.key", "-CAcreateserial", "-days", "2"]
        extra = ["-extfile", "names"] if name == "broker" else []
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.crt", *extra)
    return folder


@pytest.fixture
def fleet_port(run_mosquitto: Callable[..., int], certificates: Path, tmp_path: Path) -> int:
    """The project's own configuration with the TLS example, its places replaced by this test's."""
    return run_mosquitto(_fleet_conf(certificates, tmp_path), plain=False)


def _fleet_conf(certificates: Path, folder: Path) -> str:
    base = default_conf().read_text().split("\nlistener ")[0]
    base = base.replace("/var/lib/mosquitto/", f"{folder}/")
    tls = (EXAMPLES / "tls.conf").read_text().replace("listener 8883", "listener {port} 127.0.0.1")
    # Made by openssl here, not by `apiary pki`: other names, and no list of revoked ones.
    for ours, theirs in (
        ("ca.pem", "fleet-ca.crt"),
        ("tls/cert.pem", "broker.crt"),
        ("tls/key.pem", "broker.key"),
    ):
        tls = tls.replace(f"/etc/mosquitto/apiary/{ours}", str(certificates / theirs))
    tls = tls.replace("crlfile ", "#crlfile ")
    return base + "\n" + tls.replace("/etc/mosquitto/apiary/acl.conf", str(ACL))


@pytest.fixture
def party(fleet_port: int, certificates: Path) -> Iterator[Callable[..., MqttBus]]:
    buses: list[MqttBus] = []

    def connect(name: str, **changes: object) -> MqttBus:
        settings = {
            "port": fleet_port,
            "tls": True,
            "tls_ca": certificates / "fleet-ca.crt",
            "tls_cert": certificates / f"{name}.crt",
            "tls_key": certificates / f"{name}.key",
            **changes,
        }
        bus = MqttBus(BrokerSettings.model_validate(settings), name)
        buses.append(bus)
        return bus

    yield connect
    for bus in buses:
        bus.close()


def test_unknown_authority_is_refused_with_what_to_check(
    party: Callable[..., MqttBus], poll_until: PollUntil, certificates: Path
) -> None:
    bus = party(PI, tls_ca=certificates / "other-ca.crt")
    event = poll_until(lost, bus)[-1]
    assert isinstance(event, Disconnected)
    assert isinstance(event.error, BrokerRefused)
    assert "certificate does not hold" in str(event.error)
    assert "broker.tls_ca" in str(event.error)


def test_wrong_name_in_the_certificate_is_refused(
    party: Callable[..., MqttBus], poll_until: PollUntil
) -> None:
    event = poll_until(lost, party(PI, host="localhost"))[-1]
    assert isinstance(event, Disconnected)
    assert "Hostname mismatch" in str(event.error)


def test_device_without_a_certificate_does_not_get_in(
    party: Callable[..., MqttBus], poll_until: PollUntil
) -> None:
    event = poll_until(lost, party("watcher", tls_cert=None, tls_key=None))[-1]
    assert isinstance(event, Disconnected)
    # TLS it has: what it lacks is said, not what it has.
    assert "certificate (broker.tls_cert and broker.tls_key)" in str(event.error)
    assert not party(PI, tls_cert=None, tls_key=None).connected


def test_plain_words_to_a_tls_port_get_a_hint(party: Callable[..., MqttBus], poll_until: PollUntil) -> None:
    settings = {"tls": False, "tls_ca": None, "tls_cert": None, "tls_key": None, "connect_timeout_s": 2.0}
    event = poll_until(lost, party("watcher", **settings))[-1]
    assert isinstance(event, Disconnected)
    assert "does it expect TLS" in str(event.error)


def test_tls_to_a_plain_port_gets_a_hint(
    run_mosquitto: Callable[..., int], poll_until: PollUntil, certificates: Path
) -> None:
    port = run_mosquitto("listener {port} 127.0.0.1\nallow_anonymous true\n")
    settings = {"port": port, "tls": True, "tls_ca": certificates / "fleet-ca.crt", "connect_timeout_s": 2.0}
    bus = MqttBus(BrokerSettings.model_validate(settings), "a")
    event = poll_until(lost, bus)[-1]
    assert isinstance(event, Disconnected)
    assert f"127.0.0.1:{port}" in str(event.error)
    bus.close()


def test_many_chunks_pass_over_tls(party: Callable[..., MqttBus], poll_until: PollUntil) -> None:
    coordinator, node = party("coordinator"), party(PI)
    node.subscribe("apiary-blob/+/down/#")
    poll_until(connected, node)
    poll_until(connected, coordinator)
    node.poll(0.1)
    bodies = [bytes([i]) * 120_000 for i in range(100)]
    for i, body in enumerate(bodies):
        assert coordinator.publish(T.build(TopicKind.CHUNK_DOWN, digest=DIGEST, index=i), body)
    events = poll_until(lambda es: len(es) >= 100, node, coordinator)
    assert [e.payload for e in events if isinstance(e, Received)] == bodies


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tls_ca": "gone.crt"}, r"broker\.tls_ca gone\.crt: no such file"),
        ({"tls_cert": __file__}, r"broker\.tls_cert and broker\.tls_key belong together"),
        ({"tls_ca": __file__}, r"not usable PEM files"),
    ],
)
def test_unusable_tls_files_are_a_settings_error(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MqttBus(BrokerSettings.model_validate({"tls": True, **changes}), "a")


def test_bridge_carries_both_ways(
    run_mosquitto: Callable[..., int], poll_until: PollUntil, certificates: Path, tmp_path: Path
) -> None:
    acl = tmp_path / "acl.conf"
    rights = "user gateway\ntopic readwrite apiary/#\ntopic readwrite apiary-blob/#\n\n"
    acl.write_text(rights + ACL.read_text())
    central_conf = _fleet_conf(certificates, tmp_path).replace(str(ACL), str(acl))
    central = run_mosquitto(central_conf, plain=False)
    bridge = (EXAMPLES / "bridge.conf").read_text().replace("/etc/mosquitto/certs", str(certificates))
    bridge = bridge.replace("central.example.org:8883", f"127.0.0.1:{central}")
    site = run_mosquitto(f"listener {{port}} 127.0.0.1\nallow_anonymous true\n{bridge}")
    files = {"tls_cert": certificates / "coordinator.crt", "tls_key": certificates / "coordinator.key"}
    settings = {"port": central, "tls": True, "tls_ca": certificates / "fleet-ca.crt", **files}
    coordinator = MqttBus(BrokerSettings.model_validate(settings), "coordinator")
    node = MqttBus(BrokerSettings(port=site), PI)
    down, up = T.build(TopicKind.CHUNK_DOWN, digest=DIGEST, index=3), T.build(TopicKind.NODE_OFFER, node=PI)
    coordinator.subscribe("apiary/#")
    node.subscribe("apiary/+/round/current")
    node.subscribe("apiary-blob/+/down/#")
    poll_until(connected, coordinator)
    poll_until(connected, node)
    coordinator.publish(T.build(TopicKind.ROUND_CURRENT), b"{}", retain=True)
    poll_until(lambda es: any(isinstance(e, Received) and "round" in e.topic for e in es), node, coordinator)
    coordinator.publish(down, b"chunk")
    poll_until(lambda es: Received(down, b"chunk") in es, node, coordinator)
    node.publish(up, b"offer")
    poll_until(lambda es: Received(up, b"offer") in es, coordinator, node)
    coordinator.close()
    node.close()
