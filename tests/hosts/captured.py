"""A broker in other hands: who holds it may write everywhere, and read and repeat all that was ever said.

The server's mosquitto gets a second listener without any rights to ask for, on loopback, for as long as this
lasts. What is said there is judged by signatures alone, and whoever refuses something says so in its own log.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.hosts.fleet import until
from tests.hosts.machines import Machine

from apiary.bus.bus import Connected, Received
from apiary.bus.mqtt import MqttBus
from apiary.identity.credentials import SigningGate
from apiary.identity.load_gate import load_gate
from apiary.identity.roles import Role
from apiary.settings import BrokerSettings, SecuritySettings

PORT: Final = 1884
ROUND: Final = "apiary/default/round/current"
RELEASE: Final = "apiary/default/release/current"
CONF: Final = "/etc/mosquitto/mosquitto.conf"
Row = tuple[str, str, str]
"""What was tried, the answer, what the one who refused it says in its log."""


@dataclass(frozen=True)
class Lie:
    """A message that its reader must refuse: `heard_by`, the host and unit whose log says `why`."""

    what: str
    topic: str
    payload: bytes
    heard_by: tuple[Machine, str]
    why: str


class CapturedBroker:
    """A context: within it the broker is in the hands of somebody who also has the keys of pi-2 and pi-3."""

    def __init__(self, server: Machine, pi: Machine, keys: Path):
        self.server, self.pi, self.keys = server, pi, keys
        self._tunnel: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        more = f"\\nlistener {PORT} 127.0.0.1\\nallow_anonymous true\\n"
        self.server.ssh(
            f"cp -p {CONF} /root/own.conf && printf '{more}' >> {CONF} && systemctl restart mosquitto"
        )
        # A party says each kind of refusal once a topic: begin with parties that have said none.
        self.server.ssh("systemctl restart apiary-coordinator")
        self.pi.ssh("systemctl restart apiary-edge")
        words = ["ssh", *self.server.ssh_options(), "-N", "-L", f"{PORT}:127.0.0.1:{PORT}"]
        self._tunnel = subprocess.Popen([*words, f"pi@{self.server.address}"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tunnel is not None:
            self._tunnel.kill()
            self._tunnel.wait(10)
        self.server.ssh(f"cp -p /root/own.conf {CONF} && systemctl restart mosquitto")

    def all(self) -> list[Row]:
        """Everything, while a run goes on. Raises AssertionError where something is not refused."""
        with self._bus() as bus:
            yesterday = self._overheard(bus, {ROUND, "apiary/default/node/pi-1/offer"})
            today = self._newer(bus, ROUND, yesterday[ROUND])
            # The newest offer once more is a second delivery, no repetition: there must be a newer one.
            self._newer(bus, "apiary/default/node/pi-1/offer", yesterday["apiary/default/node/pi-1/offer"])
            forged = re.sub(rb'"round":\d+', b'"round":99', today, count=1)
            bare = b'{"v":1,"run":"forged","round":99}'
            offer = "apiary/default/node/pi-1/offer"
            node, coordinator = (self.pi, "apiary-edge"), (self.server, "apiary-coordinator")
            tries = [
                Lie("yesterday's announcement", ROUND, yesterday[ROUND], node, "a repetition"),
                Lie("an announcement that nobody signed", ROUND, bare, node, "not signed"),
                Lie("an announcement signed by a node", ROUND, self._sealed("pi-2", ROUND, bare), node,
                    "signed by node 'pi-2'"),
                Lie("an announcement changed on its way", ROUND, forged, node, "changed on its way"),
                Lie("a release that nobody signed", RELEASE, bare, node, "not signed"),
                Lie("a release signed by a node", RELEASE, self._sealed("pi-2", RELEASE, bare), node,
                    "signed by node 'pi-2'"),
                Lie("a command that nobody signed", "apiary/default/node/pi-1/command", bare, node,
                    "not signed"),
                Lie("yesterday's offer", offer, yesterday[offer], coordinator, "a repetition"),
                Lie("an offer in another's name", offer, self._sealed("pi-2", offer, bare), coordinator,
                    "signed by node 'pi-2', expected node 'pi-1'"),
                Lie("an offer of the revoked", "apiary/default/node/pi-3/offer",
                    self._sealed("pi-3", "apiary/default/node/pi-3/offer", bare), coordinator, "revoked"),
                Lie("an operator's request", "apiary/default/operator/admin/request", bare, coordinator,
                    "not signed"),
            ]  # fmt: skip
            return [self._tell(bus, lie) for lie in tries]

    def _tell(self, bus: MqttBus, lie: Lie) -> Row:
        machine, unit = lie.heard_by
        since = machine.ssh("date +%s").stdout.strip()
        # Not retained: what the coordinator said last stays with the broker.
        assert bus.publish(lie.topic, lie.payload)
        log = f"journalctl -u {unit} --since @{since} -o cat --no-pager"
        place = lie.topic.removeprefix("apiary/default/")
        found: list[str] = []

        def refused() -> bool:
            bus.poll(0.2)
            lines = machine.ssh(log).stdout.splitlines()
            found[:] = [line for line in lines if place in line and lie.why in line]
            return bool(found)

        until(f"{unit} on {machine.name} refuses {lie.what}", refused, 15, 0.3)
        return f"broker captured: {lie.what}", f"{machine.name} refused it", found[-1].strip()[-150:]

    def _overheard(self, bus: MqttBus, topics: set[str]) -> dict[str, bytes]:
        """The first message on each of `topics`."""
        for topic in topics:
            bus.subscribe(topic)
        heard: dict[str, bytes] = {}
        _hear(bus, lambda m: bool(heard.setdefault(m.topic, m.payload)) and set(heard) == topics, 1200)
        return heard

    def _newer(self, bus: MqttBus, topic: str, than: bytes) -> bytes:
        """A message on `topic` that its signer issued later, about another round."""
        old = json.loads(than)
        return _hear(bus, lambda m: m.topic == topic and json.loads(m.payload)["round"] != old["round"], 1200)

    def _sealed(self, name: str, topic: str, payload: bytes) -> bytes:
        """`payload` as somebody with the keys of `name` seals it."""
        own = self.keys / name / "signing"
        told = {"ca": self.keys / "ca.pem", "cert": own / "cert.pem", "key": own / "key.pem"}
        gate = load_gate(SecuritySettings.model_validate(told), Role.NODE, name, None, time.time)
        assert isinstance(gate, SigningGate) and gate.signer is not None
        return gate.signer.seal(topic, payload)

    @contextlib.contextmanager
    def _bus(self) -> Iterator[MqttBus]:
        bus = MqttBus(BrokerSettings(port=PORT), f"thief-{time.monotonic_ns()}")
        try:
            end = time.monotonic() + 20
            while not any(isinstance(e, Connected) for e in bus.poll(0.2)):
                assert time.monotonic() < end, "the captured broker does not answer"
            yield bus
        finally:
            bus.close()


def _hear(bus: MqttBus, wanted: Callable[[Received], bool], within_s: float) -> bytes:
    """Wait for a message; its payload."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        for event in bus.poll(0.2):
            if isinstance(event, Received) and wanted(event):
                return event.payload
    raise AssertionError(f"not heard within {within_s:.0f} s")
