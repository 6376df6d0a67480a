"""A real mosquitto with the project's own configuration for a fleet, and a fleet's own authority."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tests.broker.ports import free_port

from apiary.bus.broker import default_conf, find_mosquitto, speaks_mqtt
from apiary.bus.bus import Connected, Event
from apiary.bus.mqtt import MqttBus
from apiary.identity.rights import access_list
from apiary.settings import BrokerSettings
from apiary_cli.main import main

BROKER = Path(__file__).resolve().parents[2] / "broker"
PLUGIN = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
ROLES = {
    "coordinator": "coordinator",
    "pi-07": "node",
    "pi-08": "node",
    "alice": "operator",
    "bob": "operator",
    "walter": "viewer",
}


class Secured:
    """The broker as configured: `port` for the fleet, `open_port` on loopback, where everyone may do all."""

    def __init__(
        self, folder: Path, mode: Literal["certificates", "password"], *, extra: str = "", old: bool = False
    ):
        self.folder = folder
        self.mode = mode
        self.old_chunk_topics = old
        self.port, self.open_port = free_port(), free_port()
        self.log_file = folder / "mosquitto.log"
        self.conf = folder / "mosquitto.conf"
        (folder / "apiary").mkdir(exist_ok=True)
        self.pki("init", "--fleet", "orchard")
        self.pki("enrol", "broker", "--role", "server", "--san", "127.0.0.1", "--dir", str(folder / "apiary"))
        if mode == "certificates":
            for name, role in ROLES.items():
                self.pki("enrol", name, "--role", role, "--dir", str(folder / name))
        else:
            for i, name in enumerate(ROLES):
                passwords = [
                    *["-c"] * (i == 0),
                    "-b",
                    str(folder / "apiary" / "passwords"),
                    name,
                    f"of-{name}",
                ]
                subprocess.run(["mosquitto_passwd", *passwords], check=True, capture_output=True)
            rights = access_list(operators=["alice", "bob"], viewers=["walter"], old_chunk_topics=old)
            (folder / "apiary" / "acl.conf").write_text(rights)
        self.conf.write_text(self._conf(extra))
        self._out = self.log_file.open("wb")
        self.process = self.launch()
        self.await_answer()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start mosquitto."""
        return subprocess.Popen(
            [str(find_mosquitto()), "-c", str(self.conf)], stdout=self._out, stderr=self._out
        )

    def await_answer(self) -> None:
        """Until it answers."""
        end = time.monotonic() + 10
        while not speaks_mqtt("127.0.0.1", self.open_port):
            assert self.process.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.03)

    @property
    def settings(self) -> list[str]:
        """What `apiary pki` is told here."""
        return [
            f"pki.state_dir='{self.folder / 'pki'}'",
            f"pki.broker_dir='{self.folder / 'apiary'}'",
            f"broker.port={self.port}",
            "broker.tls=true",
            f"pki.old_chunk_topics={str(self.old_chunk_topics).lower()}",
        ]

    def pki(self, *words: str, sets: tuple[str, ...] = ()) -> int:
        flags = [word for pair in (*self.settings, *sets) for word in ("--set", pair)]
        return main(["pki", *flags, *words, "--json"])

    def party(
        self, name: str, *, files: Path | None = None, client_id: str | None = None, **changes: Any
    ) -> MqttBus:
        """A connection of `name`, with its certificate or its password."""
        return MqttBus(
            self.broker_settings(name, files=files, **changes),
            client_id or f"test-{name}-{os.urandom(4).hex()}",
        )

    def broker_settings(self, name: str, *, files: Path | None = None, **changes: Any) -> BrokerSettings:
        own = (files or self.folder / name) / "tls"
        who: dict[str, Any] = (
            {"tls_cert": own / "cert.pem", "tls_key": own / "key.pem"}
            if self.mode == "certificates"
            else {"username": name, "password": f"of-{name}"}
        )
        told = {"port": self.port, "tls": True, "tls_ca": self.folder / "pki" / "ca.pem", **who, **changes}
        return BrokerSettings.model_validate(told)

    def anyone(self) -> MqttBus:
        """A connection to the loopback listener, which may do all."""
        return MqttBus(BrokerSettings(port=self.open_port), f"test-anyone-{os.urandom(4).hex()}")

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._out.close()

    def _conf(self, extra: str) -> str:
        base = default_conf().read_text().replace("/var/lib/mosquitto/", f"{self.folder}/")
        base = base.replace("listener 1883 127.0.0.1", f"listener {self.open_port} 127.0.0.1")
        example = "tls.conf" if self.mode == "certificates" else "password.conf"
        fleet = (
            (BROKER / "examples" / example)
            .read_text()
            .replace("listener 8883", f"listener {self.port} 127.0.0.1")
        )
        fleet = fleet.replace("/etc/mosquitto/apiary", str(self.folder / "apiary"))
        if PLUGIN is not None and self.mode == "certificates":
            (self.folder / "dynamic-security.json").write_text('{"clients":[],"groups":[],"roles":[]}')
            fleet = fleet.replace("#plugin ", "plugin ").replace("#plugin_opt", "plugin_opt")
            fleet = fleet.replace("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so", str(PLUGIN))
            fleet = fleet.replace(
                "/var/lib/mosquitto/dynamic-security.json", f"{self.folder}/dynamic-security.json"
            )
        # As root it would become the user `mosquitto`, who cannot read a test's folder.
        user = "user root\n" if os.geteuid() == 0 else ""
        return f"{user}{base}\n{extra}\n{fleet}\n"


def poll(
    until: Callable[[list[Event]], bool],
    *buses: MqttBus,
    within_s: float = 20.0,
    before: Sequence[Event] = (),
) -> list[Event]:
    """Poll the buses in turn until `until(all events so far)`, those of `before` too; gives the events."""
    events = list(before)
    end = time.monotonic() + within_s
    while not until(events):
        assert time.monotonic() < end, f"not in time; so far: {events[-5:]}"
        for bus in buses:
            events += bus.poll(0.02)
    return events


def connect(*buses: MqttBus) -> None:
    for bus in buses:
        poll(lambda events: any(isinstance(e, Connected) for e in events), bus)


def sent(bus: MqttBus) -> None:
    """Until the broker has it all."""
    end = time.monotonic() + 20
    while bus.backlog:
        assert time.monotonic() < end, "the broker does not take it"
        bus.poll(0.05)
