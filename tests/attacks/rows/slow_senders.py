"""Fifty connections that trickle and fifty that hold still, against each page and port, from one address."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import Ground
from tests.attacks.services import free_port, running

COUNT = 50
WITHIN_S = 2.0
ASKED = 5
START = b"POST /api/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\nX-Filler: "
START_TLS = b"\x16\x03\x01\x3f\xff" + bytes(1000)
"""Of a record that never ends."""


class Siege:
    """Keeps its connections open, and opens each again that is hung up on."""

    def __init__(self, port: int, start: bytes):
        self._port = port
        self._start = start
        self._stop = threading.Event()
        self.opened = 0
        self._full = threading.Event()
        self._thread = threading.Thread(target=self._run, name="siege")
        self._thread.start()
        assert self._full.wait(30), "the siege did not begin"

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        links: list[socket.socket | None] = [None] * (2 * COUNT)
        sent = [0] * len(links)
        while not self._stop.is_set():
            for i in range(len(links)):
                link = links[i]
                try:
                    if link is None:
                        links[i] = link = socket.create_connection(("127.0.0.1", self._port), 5)
                        link.setblocking(False)
                        sent[i] = 0
                        self.opened += 1
                    elif link.recv(1) == b"":
                        raise ConnectionResetError
                except BlockingIOError:
                    pass
                except OSError:
                    if link is not None:
                        link.close()
                    links[i] = None
                    continue
                if i % 2 and link is not None:
                    with contextlib.suppress(OSError):
                        sent[i] += link.send(self._start[sent[i] : sent[i] + 1] or b"x")
            self._full.set()
            self._stop.wait(0.2)
        for link in links:
            if link is not None:
                link.close()


def besieged(port: int, ask: Callable[[], int], start: bytes = START) -> Outcome:
    """The owner asks again and again: each answer has to come within the time."""
    assert ask() == 200, "the owner is not answered in peace"
    siege = Siege(port, start)
    took = []
    try:
        for _ in range(ASKED):
            began = time.monotonic()
            assert ask() == 200
            took.append(time.monotonic() - began)
            time.sleep(0.5)
    finally:
        siege.close()
    assert max(took) < WITHIN_S, f"the owner waited {max(took):.1f} s"
    return Outcome(
        f"{COUNT} trickle, {COUNT} hold still, opened again when hung up on: {siege.opened} connections",
        f"{ASKED} answers to the owner, the slowest after {max(took):.2f} s",
    )


def asking(port: int, path: str, context: ssl.SSLContext | None = None) -> Callable[[], int]:
    def ask() -> int:
        link = (
            http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
            if context is not None
            else http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        )
        try:
            link.request("GET", path)
            return link.getresponse().status
        finally:
            link.close()

    return ask


@attack("slow senders: the labelling page", mend="places")
def slow_labelling(ground: Ground) -> Outcome:
    with running(ground, "label", "--port", "0", until=r"http://(\S+)") as (address, _):
        where, _, path = address.partition("/")
        port = int(where.rpartition(":")[2])
        return besieged(port, asking(port, f"/{path}"))


@attack("slow senders: the predictions page", mend="places")
def slow_predictions(ground: Ground) -> Outcome:
    port = free_port()
    flags = ["--set", "edge.predict.enabled=true", "--set", f"edge.page.port={port}"]
    words = [
        "edge",
        "--node-id",
        "pi-siege",
        "--state-dir",
        "edge",
        "--data",
        "pictures",
        "--port",
        str(free_port()),
    ]
    with running(ground, *words, *flags, until=r"pages: (http://\S+)") as (_, folder):
        token = (folder / "edge/labelling.token").read_text().strip()
        return besieged(port, asking(port, f"/?token={token}"))


@attack("slow senders: apiary pki serve", mend="places")
def slow_enrolment(ground: Ground) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="apiary-siege-") as temporary:
        pki = ["--set", f"pki.state_dir={temporary}/pki"]
        subprocess.run(
            [sys.executable, "-m", "apiary_cli", "pki", *pki, "init"],
            check=True,
            capture_output=True,
            timeout=120,
        )
        words = ["pki", *pki, "serve", "--host", "127.0.0.1", "--port", "0"]
        with running(ground, *words, until=r"https://\S+:(\d+)") as (port, _):
            context = ssl.create_default_context(cafile=f"{temporary}/pki/ca.pem")
            context.check_hostname = False
            return besieged(int(port), asking(int(port), "/v1/ca", context), START_TLS)


@attack("slow senders: the metrics port", mend="places")
def slow_metrics(ground: Ground) -> Outcome:
    port = free_port()
    words = ["coordinator", "--test-data", "pictures", "--port", str(free_port())]
    words += ["--set", f"metrics.port={port}"]
    with running(ground, *words, until=rf"metrics at (http://\S+:{port})"):
        return besieged(port, asking(port, "/metrics"))


BODY = 8 * 2**20
SENDERS = 30
MOST_MB = 48.0
"""What the page may take more than in peace: a body is 8 MB."""


@attack("pictures of 8 MB for the predictions page, from senders without the token", mend="bodies")
def unknown_senders(ground: Ground) -> Outcome:
    port = free_port()
    flags = ["--set", "edge.predict.enabled=true", "--set", f"edge.page.port={port}"]
    words = ["edge", "--node-id", "pi-siege", "--state-dir", "edge", "--data", "pictures"]
    words += ["--port", str(free_port())]
    with running(ground, *words, *flags, until=r"pages: (http://\S+)") as (_, folder):
        token = (folder / "edge/labelling.token").read_text().strip()
        assert asking(port, f"/?token={token}")() == 200
        before = peak = memory_mb(folder)
        links, taken = list[socket.socket](), 0
        lines = ["POST /predictions/api/image HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {BODY}"]
        head = "\r\n".join([*lines, "", ""])
        for _ in range(SENDERS):
            link = socket.create_connection(("127.0.0.1", port), 5)
            link.settimeout(0.5)
            links.append(link)
            with contextlib.suppress(OSError):
                link.sendall(head.encode())
                # All but the last byte: the request stays open, and in memory where it is read.
                for _ in range(BODY // 2**16):
                    taken += link.send(bytes(2**16 - 1))
            peak = max(peak, memory_mb(folder))
        assert peak - before < MOST_MB, f"the page took {peak - before:.0f} MB more"
        assert asking(port, f"/?token={token}")() == 200
        for link in links:
            link.close()
    return Outcome(
        f"{SENDERS} bodies, of which the system took {taken / 1e6:.0f} MB; the page took "
        f"{max(0.0, peak - before):.0f} MB more",
        "the owner is answered meanwhile",
    )


def memory_mb(folder: Path) -> float:
    """Of all processes that run in this folder."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, StopIteration):
            if (process / "cwd").resolve() == folder.resolve():
                lines = (process / "status").read_text().splitlines()
                total += int(next(x for x in lines if x.startswith("VmRSS")).split()[1])
    return total / 1024
