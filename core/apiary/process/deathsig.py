"""A child process that ends when its parent does, however the parent ends. Linux; elsewhere nothing."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send this process a signal when its parent is gone. Safe between fork and exec.

    A process that may be stopped by SIGSTOP needs SIGKILL: others wait until it goes on.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, int(by), 0, 0, 0)


def _find() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return prctl


# Looked up at import: loading a library between fork and exec may deadlock.
_PRCTL: Final = _find()
