"""`apiary label`, `edge`, `coordinator` or `pki serve` as a process, each in a folder of its own."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tests.attacks.ground import Ground


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


@contextlib.contextmanager
def running(ground: Ground, *words: str, until: str) -> Iterator[tuple[str, Path]]:
    """`apiary WORDS` in a folder of its own, once a line of its output matches; that line."""
    with tempfile.TemporaryDirectory(prefix="apiary-siege-") as temporary:
        folder = Path(temporary)
        for label in ("a", "b"):
            (folder / "pictures" / label).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(folder / "pictures" / label / f"{i}.png")
        out = folder / "out"
        with out.open("wb") as f:
            process = subprocess.Popen(
                [sys.executable, "-m", "apiary_cli", *words],
                cwd=folder,
                env=ground.environment(),
                stdout=f,
                stderr=f,
            )
        try:
            end = time.monotonic() + 120
            while (found := re.search(until, out.read_text(errors="replace"))) is None:
                said = out.read_text(errors="replace")[-500:]
                assert process.poll() is None, f"{words[0]} ended with {process.returncode}: {said}"
                assert time.monotonic() < end, f"{words[0]} did not begin: {said}"
                time.sleep(0.1)
            yield found[1], folder
        finally:
            process.terminate()
            process.wait(60)
