"""A real node outside its hours: it says so over a real broker, and to the owner beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from apiary.bus.broker import start_broker

WAIT_S = 30.0


def hours_without(now: float) -> str:
    """An hour of this day that is not within half a day of now."""
    begin = (time.localtime(now).tm_hour + 12) % 24
    return f"{begin:02d}:00-{begin:02d}:30"


def test_a_node_outside_its_hours_says_so_to_all(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "pictures" / label / "1.png")
    hours = hours_without(time.time())
    apiary = [sys.executable, "-m", "apiary_cli"]
    which = ["--node-id", "pi-1", "--state-dir", str(tmp_path / "state")]
    with start_broker(0, state_dir=tmp_path / "broker") as broker:
        port = ["--port", str(broker.port)]
        rules = ["--set", f"edge.guest.hours={json.dumps([hours])}"]
        node = subprocess.Popen(
            [*apiary, "edge", *which, *port, *rules, "--data", str(tmp_path / "pictures")], cwd=tmp_path
        )
        try:
            told: dict[str, Any] = {}
            end = time.monotonic() + WAIT_S
            while told.get("nodes", {}).get("pi-1", {}).get("state") != "paused":
                assert time.monotonic() < end, told
                told = said([*apiary, "status", "--json", *port], tmp_path)
            assert told["nodes"]["pi-1"]["why"] == f"outside edge.guest.hours ({hours})"
            assert told["nodes"]["pi-1"]["health"]["memory_available_mb"] > 0
            beside: dict[str, Any] = {}
            # The file follows a moment later: the pause may stand in it before the broker does.
            while beside.get("state") != "paused" or not beside["broker"]["connected"]:
                assert time.monotonic() < end, beside
                beside = said([*apiary, "edge", "status", "--json", *which], tmp_path)
            assert beside["why"] == f"outside edge.guest.hours ({hours})"
            assert beside["running"]
            assert beside["health"]["disk_free_mb"] > 0
        finally:
            node.kill()
            node.wait()


def said(command: list[str], folder: Path) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=folder)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
