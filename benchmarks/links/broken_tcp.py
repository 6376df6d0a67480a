"""End a process' TCP connections from outside, as a modem does that restarts. Needs root, and Linux 5.6."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD: Final = 438  # the same on all architectures
_NO_ADDRESS: Final = bytes(16)
"""A sockaddr of AF_UNSPEC: to connect there dissolves a connection (connect(2))."""


def break_connections(pid: int, port: int) -> int:
    """End the connections of a process to a port, with all that they still had to send; how many there were.

    `ss -K` would do it too where the kernel was built to let it. Raises OSError without the right.
    """
    broken = 0
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=_call("syscall", _PIDFD_GETFD, process, int(entry.name), 0)) as s:
                    if s.family == socket.AF_INET and _peer_port(s) == port:
                        _call("connect", s.fileno(), _NO_ADDRESS, len(_NO_ADDRESS))
                        broken += 1
    finally:
        os.close(process)
    return broken


def _peer_port(s: socket.socket) -> int | None:
    try:
        return int(s.getpeername()[1])
    except OSError:  # not connected
        return None


def _call(name: str, *arguments: int | bytes) -> int:
    done: int = getattr(_LIBC, name)(*arguments)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return done
