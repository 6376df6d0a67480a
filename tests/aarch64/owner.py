"""An owner at the Pi's terminal: sees each picture that `apiary samples label` shows, and types its label."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.aarch64.tree import Tree

_ID: Final = re.compile(r"\b([0-9a-f]{12})  ")
SILENT_S: Final = 600.0


def label_in_terminal(tree: Tree, state: Path, see: Callable[[Path], str]) -> int:
    """Label every picture that waits; `see` gives a picture's label. How many it says were labelled."""
    files = {sample["id"][:12]: Path(sample["file"]) for sample in samples(tree, state)}
    ours, theirs = pty.openpty()
    command = [*tree.python, "-m", "apiary_cli", "samples", "label", "--state-dir", str(state)]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=tree.environment)
    os.close(theirs)
    seen = ""
    try:
        while (text := _read(ours)) is not None:
            seen += text
            if seen.endswith("label? "):
                shown = _ID.findall(seen)[-1]
                os.write(ours, f"{see(files[shown])}\n".encode())
                seen = ""
        if child.wait(SILENT_S) != 0:
            raise SystemExit(f"labelling ended with code {child.returncode}: {seen[-1000:]}")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        os.close(ours)
    said = re.search(r"labelled: (\d+)", seen)
    if said is None:
        raise SystemExit(f"labelling did not say what it did: {seen[-1000:]}")
    return int(said[1])


def samples(tree: Tree, state: Path) -> list[dict[str, str]]:
    """What the store holds, as `apiary samples list --json` has it."""
    listed = tree.run(
        ["-m", "apiary_cli", "samples", "list", "--json", "--limit", "200", "--state-dir", state]
    )
    return [json.loads(line) for line in listed.splitlines()]


def _read(terminal: int) -> str | None:
    """What is on the terminal now; None once nobody writes to it any more."""
    end = time.monotonic() + SILENT_S
    while time.monotonic() < end:
        if select.select([terminal], [], [], 1.0)[0]:
            with contextlib.suppress(OSError):  # EIO: the other end is closed
                if data := os.read(terminal, 65536):
                    return data.decode(errors="replace")
            return None
    raise SystemExit(f"the terminal was silent for {SILENT_S:.0f} s")
