"""How a benchmark ends what it started: asked first, killed where that does not help."""

from __future__ import annotations

import subprocess


def end(*processes: subprocess.Popen[str] | subprocess.Popen[bytes], within_s: float = 20.0) -> None:
    """End each in turn, and wait for it; those that have ended already are none to wait for."""
    for process in processes:
        process.terminate()
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
