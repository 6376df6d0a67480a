"""What the deployed broker's unit does around mosquitto, taken from its template."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

UNIT = Path(__file__).resolve().parents[2] / "deploy/roles/broker/templates/mosquitto.service.conf.j2"


def commands(key: str, folder: Path) -> list[list[str]]:
    """The shell commands of `key`, with `folder` in place of the unit's own."""
    found = [
        x.removeprefix(f"{key}=-") for x in UNIT.read_text().splitlines() if x.startswith(f"{key}=-/bin/sh")
    ]
    assert found, f"the unit has no {key}"
    # systemd makes one dollar of two.
    return [shlex.split(x.replace("/var/lib/mosquitto", str(folder)).replace("$$", "$")) for x in found]


def before_start(folder: Path) -> None:
    """Its ExecStartPre."""
    for command in commands("ExecStartPre", folder):
        subprocess.run(command, check=True)


def after_end(folder: Path, code: int) -> None:
    """Its ExecStopPost, after mosquitto ended with `code` (negative: by that signal)."""
    result = "success" if code == 0 else "signal" if code < 0 else "exit-code"
    for command in commands("ExecStopPost", folder):
        subprocess.run(command, check=False, env={**os.environ, "SERVICE_RESULT": result})
