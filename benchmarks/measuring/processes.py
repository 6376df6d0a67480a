"""How benchmarks start the processes that they measure, and how they end them.

Parts are modules of `benchmarks`, named by their path in it: start the benchmark in the checkout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apiary.bus.broker import BrokerProcess, start_broker

LATEST_S = 300.0


def python(module: str) -> list[str]:
    """The command that runs a module of `benchmarks`, as `fleet.bare_loop`."""
    return [sys.executable, "-m", f"benchmarks.{module}"]


def run(command: list[str]) -> dict[str, Any]:
    """Run a part of the benchmark; the JSON of its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LATEST_S)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@contextmanager
def broker() -> Iterator[BrokerProcess]:
    with start_broker(0, prefer="mosquitto") as b:
        yield b


@contextmanager
def scratch(where: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def child(
    *arguments: str, module: str = "measuring.service", inside: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*inside, *python(module), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        end(process, within_s=5)


def end(*processes: subprocess.Popen[str] | subprocess.Popen[bytes], within_s: float = 20.0) -> None:
    """End each in turn, and wait for it; those that have ended already are none to wait for."""
    for process in processes:
        process.terminate()
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
