"""Fifty connections that trickle and fifty that hold still, against each page and port, from one address."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from tests.attacks import unmended
from tests.attacks.attack import Outcome, attack
from tests.attacks.ground import Ground

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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


@contextlib.contextmanager
def running(ground: Ground, *words: str, until: str) -> Iterator[tuple[str, Path]]:
    """`apiary WORDS` in a folder of its own, once a line of its output matches; that line."""
    program = ["-m", "apiary_cli"]
    if ground.without is not None:
        program = [unmended.__file__, ground.without, "cli"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("APIARY_")}
    with tempfile.TemporaryDirectory(prefix="apiary-siege-") as temporary:
        folder = Path(temporary)
        for label in ("a", "b"):
            (folder / "pictures" / label).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(folder / "pictures" / label / f"{i}.png")
        out = folder / "out"
        with out.open("wb") as f:
            process = subprocess.Popen(
                [sys.executable, *program, *words], cwd=folder, env=environment, stdout=f, stderr=f
            )
        try:
            end = time.monotonic() + 120
            while (found := re.search(until, out.read_text(errors="replace"))) is None:
                assert process.poll() is None and time.monotonic() < end, out.read_text(errors="replace")[
                    -500:
                ]
                time.sleep(0.1)
            yield found[1], folder
        finally:
            process.terminate()
            process.wait(60)


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
