"""Processes and ports of this machine, from /proc."""

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from apiary_cli.demo.federation import MARK


def ports_in_use(ports: list[int]) -> list[int]:
    """Those of `ports` that somebody still listens on."""
    used = []
    for port in ports:
        with socket.socket() as s:
            s.settimeout(1.0)
            if s.connect_ex(("127.0.0.1", port)) == 0:
                used.append(port)
    return used


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children_of(pid: int) -> list[int]:
    """The children of a process; none where it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text(encoding="utf-8").split()]
    return found


def limit_files(pid: int, size: int) -> None:
    """How large any file of a process may become; its children to come have the same."""
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def began_of(pid: int) -> int | None:
    """When a process began, by the kernel's ticks; None where it is gone, or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_killed(pid: int) -> bool:
    """Whether SIGKILL waits for it: it is on its way out, and only has not had the processor yet."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) >> signal.SIGKILL - 1 & 1:
                return True
    return False


def processes_of(folder: str) -> Iterator[tuple[int, str]]:
    """Those whose command or environment names the folder: a child's command need not."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                around = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if folder in command or f"{MARK}={folder}" in around:
                    yield int(entry.name), command
