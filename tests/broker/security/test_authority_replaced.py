"""The authority of a running fleet is replaced, with a real mosquitto, though some parties are off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from tests.broker.secured import Secured, connect, poll

from apiary.bus.bus import Connected, Disconnected, Event
from apiary.bus.mqtt import MqttBus
from apiary.settings import BrokerSettings, Settings
from apiary_cli.main import main
from apiary_cli.pki.enrolment_server import make_service
from apiary_cli.pki.folder import CaFolder


@contextmanager
def enrolment(secured: Secured) -> Iterator[str]:
    pki = {"state_dir": secured.folder / "pki", "broker_dir": secured.folder / "apiary"}
    settings = Settings.model_validate({"pki": {**pki, "listen": "127.0.0.1", "port": 0}})
    service = make_service(CaFolder(secured.folder / "pki"), settings)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{service.port}"
    service.close()
    thread.join(5)


def renew(secured: Secured, name: str, url: str, *more: str) -> int:
    return main(["pki", "renew", "--url", url, "--dir", str(secured.folder / name), *more, "--json"])


def restart(secured: Secured) -> None:
    secured.process.terminate()
    secured.process.wait(10)
    secured.process = secured.launch()
    secured.await_answer()


def party(secured: Secured, name: str) -> MqttBus:
    """A node as it is configured: its own ca.pem says whom it trusts."""
    tls = secured.folder / name / "tls"
    own = {"tls_ca": tls / "ca.pem", "tls_cert": tls / "cert.pem", "tls_key": tls / "key.pem"}
    settings = {"port": secured.port, "tls": True, "retry_max_s": 0.5, **own}
    return MqttBus(BrokerSettings.model_validate(settings), f"test-{name}")


def up(events: list[Event]) -> bool:
    return any(isinstance(e, Connected) for e in events)


def down(events: list[Event]) -> bool:
    assert not up(events)
    return any(isinstance(e, Disconnected) for e in events)


def again(secured: Secured, *buses: MqttBus) -> None:
    """The broker starts again, and each is connected again, by what it has on disk now."""
    restart(secured)
    for bus in buses:
        poll(lambda events: any(isinstance(e, Disconnected) for e in events), bus)
        poll(up, bus)


def test_the_authority_is_replaced_while_the_fleet_runs(secured: Secured) -> None:
    ending = "pki.days=0.0002"  # 17 s
    assert secured.pki("enrol", "pi-over", "--dir", str(secured.folder / "pi-over"), sets=(ending,)) == 0
    coordinator, node = party(secured, "coordinator"), party(secured, "pi-07")
    connect(coordinator, node)

    # 1. Both are trusted; parties renew, servers keep what everybody knows.
    assert secured.pki("replace-authority") == 0
    again(secured, coordinator, node)
    with enrolment(secured) as url:
        for name in ("coordinator", "pi-07", "alice", "bob", "walter"):
            assert renew(secured, name, url) == 0
    again(secured, coordinator, node)

    # 2. pi-08 and pi-over are off. The broker shows a certificate of the new one.
    assert secured.pki("replace-authority", "--servers") == 2
    assert secured.pki("replace-authority", "--servers", "--anyway") == 0
    with enrolment(secured) as url:
        assert renew(secured, "apiary", url, "--force") == 0
    again(secured, coordinator, node)

    # 3. The former one is not trusted any more.
    assert secured.pki("replace-authority", "--finish", "--anyway") == 0
    again(secured, coordinator, node)
    off = party(secured, "pi-08")
    poll(down, off)
    with enrolment(secured) as url:
        # Who was off comes back by what its timer does anyway, and its service by itself.
        assert renew(secured, "pi-08", url) == 0
        poll(up, off)
        # Who was off until its certificates had ended: one command more.
        pem = (secured.folder / "pi-over" / "tls" / "cert.pem").read_bytes()
        end = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
        time.sleep(max(0.0, end - time.time()) + 0.1)
        over = party(secured, "pi-over")
        poll(down, over)
        assert renew(secured, "pi-over", url) == 5
        assert secured.pki("readmit", "pi-over") == 0
        assert renew(secured, "pi-over", url) == 0
        poll(up, over)
        for name in ("coordinator", "pi-07"):
            assert renew(secured, name, url) == 0
    again(secured, coordinator, node, off, over)
    # What is revoked under the new one is out.
    reload = (f"pki.reload=['kill', '-HUP', '{secured.process.pid}']",)
    assert secured.pki("revoke", "pi-08", sets=reload) == 0
    connect(fresh := party(secured, "alice"))
    thrown = party(secured, "pi-08")
    poll(down, thrown)
    for bus in (coordinator, node, off, over, fresh, thrown):
        bus.close()
