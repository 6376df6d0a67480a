"""What somebody on the network, or with a device of the fleet in hand, would try on the deployed broker.

Each attempt gives what came back and the broker's own line about it; there must be one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.hosts.machines import Machine, quoted

from apiary.bus.bus import Connected, Event, PublishRefused, Received
from apiary.bus.mqtt import MqttBus
from apiary.settings import BrokerSettings

PORT = 8883
HELLO = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05thief"
"""CONNECT of MQTT 3.1.1 as client `thief`."""
_FLOOD = """
import contextlib, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
hello, made = bytes.fromhex(sys.argv[1]), 0
for second in range(5):
    began, links = time.monotonic(), []
    for _ in range(1000):
        link = socket.socket()
        link.setblocking(False)
        link.connect_ex((sys.argv[2], 8883))
        links.append(link)
    time.sleep(max(0, began + 1 - time.monotonic()))
    for link in links:
        with contextlib.suppress(OSError):
            made += link.send(hello) > 0
        link.close()
print(made)
"""
"""A thousand connects in each of five seconds, each the first words of TLS; how many got through."""
Row = tuple[str, str, str]
"""What was tried, the answer, what the broker's log says."""


class Attacker:
    """Somebody on the same network, who holds the keys of pi-2, and those of pi-3, which is revoked."""

    def __init__(self, server: Machine, pis: Mapping[str, Machine], folder: Path) -> None:
        self.server, self.pis, self.folder = server, pis, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def all(self) -> list[Row]:
        """Try everything. Raises AssertionError where something is not refused."""
        for name, machine in (*self.pis.items(), ("coordinator", self.server)):
            self._take(name, machine)
        self._issue("late", "--set", "pki.days=0.0001")
        self._other_authority()
        time.sleep(9)  # until `late` has expired
        return [
            self._knock("no certificate", None),
            self._knock("a certificate of another authority", "other"),
            self._knock("an expired certificate", "late"),
            self._knock("a revoked certificate", "pi-3"),
            self._plain(),
            self._write("a node writes as another", "apiary/default/node/pi-1/status", b"{}"),
            self._write("a node offers as another", "apiary/default/node/pi-1/offer", b"{}"),
            self._write("a node forges an announcement", "apiary/default/round/current", b"{}"),
            self._write("a node forges a release", "apiary/default/release/current", b"{}"),
            self._write("a node gives commands", "apiary/default/node/pi-1/command", b"{}"),
            self._write("a node sends chunks as another", "apiary-blob/default/up/pi-1", b"{}"),
            self._write("a node asks as an operator", "apiary/default/operator/admin/request", b"{}"),
            self._listen("a node reads another's updates", "apiary-blob/default/up/pi-1"),
            self._listen("a node reads another's grants", "apiary/default/node/pi-1/grant", "coordinator"),
            self._oversize(),
        ]  # fmt: skip

    # --- who ------------------------------------------------------------------------------------------

    def _take(self, name: str, machine: Machine) -> None:
        folder = self.folder / name
        folder.mkdir()
        for file in ("cert.pem", "key.pem"):
            (folder / file).write_text(machine.ssh(f"cat /etc/apiary/tls/{file}").stdout)
            (folder / "signing").mkdir(exist_ok=True)
            signing = machine.ssh(f"cat /etc/apiary/signing/{file}").stdout
            (folder / "signing" / file).write_text(signing)
        (self.folder / "ca.pem").write_text(machine.ssh("cat /etc/apiary/tls/ca.pem").stdout)

    def _issue(self, name: str, *options: str) -> None:
        self.server.ssh(f"apiary pki enrol {name} --role viewer --dir /root/{name} {' '.join(options)}")
        self._fetch(name)

    def _other_authority(self) -> None:
        """A certificate for the same name, by somebody else's authority."""
        own = ["--set", "pki.state_dir=/root/other-ca", "--set", "pki.reload=[]", "--set", "pki.kick=false",
               "--set", "pki.broker_dir=/root/other-files"]  # fmt: skip
        words = " ".join(own)
        self.server.ssh("rm -rf /root/other* && mkdir -p /root/other-files")
        self.server.ssh(f"apiary pki init --fleet other {words}")
        self.server.ssh(f"apiary pki enrol coordinator --role coordinator --dir /root/other {words}")
        self._fetch("other")

    def _fetch(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        for file in ("cert.pem", "key.pem"):
            (folder / file).write_text(self.server.ssh(f"cat /root/{name}/tls/{file}").stdout)

    # --- what -----------------------------------------------------------------------------------------

    def _knock(self, what: str, who: str | None) -> Row:
        """A TLS client that says CONNECT and waits for an answer. TLS 1.3 tells it only then."""
        since = self._now()
        try:
            with self._link(who) as link:
                link.sendall(HELLO)
                answer = link.recv(4)
        except OSError as e:
            return what, f"{getattr(e, 'reason', '') or e}", self._log(since, "SSL routines")
        assert not answer, f"{what}: the broker answered {answer!r}"
        return what, "the broker closed the connection", self._log(since, "SSL routines")

    def _plain(self) -> Row:
        since = self._now()
        with socket.create_connection((self.server.address, PORT), 5) as link:
            link.sendall(HELLO)
            link.settimeout(5)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                answer = link.recv(64)
        # At most a TLS alert, never a CONNACK.
        assert answer[:1] in (b"", b"\x15"), f"the broker answered {answer!r} without TLS"
        with contextlib.suppress(OSError):
            socket.create_connection((self.server.address, 1883), 2).close()
            raise AssertionError("port 1883 is open")
        return "no TLS", "closed; there is no port 1883", self._log(since, "wrong version")

    def _write(self, what: str, topic: str, payload: bytes) -> Row:
        since = self._now()
        with self._bus() as bus:
            bus.publish(topic, payload)
            refused = _poll(bus, lambda e: isinstance(e, PublishRefused))
        assert isinstance(refused, PublishRefused), f"{what}: {refused}"
        return what, refused.reason, self._log(since, "Denied PUBLISH")

    def _listen(self, what: str, topic: str, whose: str = "pi-1") -> Row:
        """One device hears nothing of what another party may publish there."""
        since = self._now()
        with self._bus() as thief, self._bus(whose) as owner:
            thief.subscribe(topic)
            _poll(thief, lambda e: False, 1)
            assert owner.publish(topic, b"secret")
            _poll(owner, lambda e: False, 1)
            assert owner.backlog == 0, "the owner could not publish its own chunk"
            got = _poll(thief, lambda e: isinstance(e, Received), 2)
        assert got is None, f"{what}: {got}"
        return what, "subscribed, and nothing came", self._log(since, "Denied SUBSCRIBE")

    def _oversize(self) -> Row:
        """By hand: our own bus keeps to the limit that the broker announces."""
        since = self._now()
        topic = b"apiary/default/node/pi-2/ask"
        body = len(topic).to_bytes(2, "big") + topic + b"x" * 1_100_000
        length, left = bytearray(), len(body)
        while left:
            left, digit = divmod(left, 128)
            length.append(digit | (0x80 if left else 0))
        with self._link("pi-2") as link:
            link.sendall(HELLO)
            assert link.recv(4) == b"\x20\x02\x00\x00", "pi-2 does not get in"
            answer = b""
            with contextlib.suppress(OSError):
                link.sendall(b"\x30" + bytes(length) + body)
                answer = link.recv(4)
        assert not answer, f"the broker answered {answer!r}"
        return "a packet of 1.1 MB", "the broker closed the connection", self._log(since, "oversize")

    def flood(self) -> Row:
        """A thousand connects a second from outside, through the packet filter."""
        since, dropped, hello = self._now(), self._dropped(), _client_hello().hex()
        words = [sys.executable, "-c", _FLOOD, hello, self.server.address]
        made = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        with self._bus():
            pass  # who has a certificate gets in all the same
        dropped = self._dropped() - dropped
        assert dropped > 1000, f"{made} connects got through, and {dropped} were dropped"
        answer = f"{made} got through, {dropped} packets were dropped; a node gets in"
        return "1000 connects a second, for five", answer, self._log(since, "strangers of '10.", 25)

    def flood_inside(self) -> Row:
        """The same on the server itself, where no packet filter is in between."""
        since, hello = self._now(), _client_hello().hex()
        made = self.server.ssh(f"python3 -c {quoted(_FLOOD)} {hello} 127.0.0.1").stdout.strip()
        with self._bus():
            pass
        answer = f"{made} got through; a node gets in"
        return "the same, past the packet filter", answer, self._log(since, "strangers of '127.", 25)

    def _dropped(self) -> int:
        """Packets that the server's packet filter dropped as too many."""
        told = self.server.ssh("nft list chain inet apiary too_many").stdout
        return int(told.partition("counter packets ")[2].split()[0])

    # --- how ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _link(self, who: str | None) -> Iterator[ssl.SSLSocket]:
        """A bare TLS connection with the certificate of `who`."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if who is not None:
            context.load_cert_chain(self.folder / who / "cert.pem", self.folder / who / "key.pem")
        with (
            socket.create_connection((self.server.address, PORT), 5) as raw,
            context.wrap_socket(raw, server_hostname=self.server.address) as link,
        ):
            yield link

    @contextlib.contextmanager
    def _bus(self, who: str = "pi-2") -> Iterator[MqttBus]:
        own = self.folder / who
        bus = MqttBus(
            BrokerSettings(
                host=self.server.address, port=PORT, tls=True, tls_ca=self.folder / "ca.pem",
                tls_cert=own / "cert.pem", tls_key=own / "key.pem",
            ),
            f"default-thief-{time.monotonic_ns()}",
        )  # fmt: skip
        try:
            assert _poll(bus, lambda e: isinstance(e, Connected), 15), f"{who} does not get in"
            yield bus
        finally:
            bus.close()

    def _now(self) -> str:
        return self.server.ssh("date +%s").stdout.strip()

    def _log(self, since: str, word: str, within_s: float = 5) -> str:
        """What mosquitto's log says of it. Raises AssertionError where it says nothing."""
        end = time.monotonic() + within_s
        while True:
            said = self.server.ssh(f"journalctl -u mosquitto --since @{since} -o cat --no-pager").stdout
            lines = [line for line in said.splitlines() if word in line]
            if lines:
                return re.sub(r"^[-\d:T]+: ", "", lines[-1])[:150]
            assert time.monotonic() < end, f"mosquitto's log has no {word!r}, but\n{said[-2000:]}"
            time.sleep(0.3)


def _client_hello() -> bytes:
    """How a TLS session begins."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


def _poll(bus: MqttBus, wanted: Callable[[Event], bool], within_s: float = 10) -> Event | None:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        for event in bus.poll(0.1):
            if wanted(event):
                return event
    return None
