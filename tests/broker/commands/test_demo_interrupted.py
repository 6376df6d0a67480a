"""Ctrl-C in a demo, early and late: nothing runs on, nothing is left in the folder of runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.broker.processes import processes_of

from apiary.bus.broker import find_mosquitto

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


@pytest.mark.parametrize("said", ["sharing out", "exporting the model", "is here"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, said: str) -> None:
    """Its folder, with every node's pictures in it, stayed for ever, and nobody was told of it."""
    log = tmp_path / "log"
    with log.open("wb") as err:
        demo = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "apiary_cli",
                "demo",
                "--limit",
                "200",
                "--runs-dir",
                str(tmp_path / "runs"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
    try:
        end = time.monotonic() + 60
        while said not in log.read_text():
            assert time.monotonic() < end and demo.poll() is None, log.read_text()
            time.sleep(0.02)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130
    finally:
        demo.kill()
        demo.wait()
    assert processes_of(tmp_path) == []
    assert list((tmp_path / "runs").glob(".demo-*")) == []
    assert "Traceback" not in log.read_text()
