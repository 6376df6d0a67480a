"""How much memory is left for one more process: of the machine, of control groups, of the address space."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apiary_edge.health import readings as figures

_MAX_LEVELS: Final = 16


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group that can bound memory: its limit, its use, and what the use consists of."""

    limit: Path
    used: Path
    stat: Path

    def room(self) -> int | None:
        """Bytes left; None without a limit, which is the usual case and costs one small file."""
        limit = text_of(self.limit)
        if figures.is_unlimited(limit):
            return None
        return figures.cgroup_room(limit, text_of(self.used), text_of(self.stat))


class MemoryRoom:
    """Of the machine that `root` stands for, and of every control group around this process."""

    def __init__(self, root: Path = Path("/")):
        self._meminfo = root / "proc/meminfo"
        self._groups = _groups(root)

    def available(self) -> int | None:
        """Bytes that a new process may have now; None where the machine does not say."""
        machine = figures.meminfo(text_of(self._meminfo)).get("MemAvailable")
        rooms = [room for group in self._groups if (room := group.room()) is not None]
        return min([*rooms, machine] if machine is not None else rooms, default=None)


def address_limit() -> int | None:
    """RLIMIT_AS in bytes, which children inherit; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def resident_bytes(process: Path) -> int | None:
    """Resident memory of a process by its folder in /proc; None where there is none."""
    pages = text_of(process / "statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else None


def text_of(path: Path) -> str:
    """A small file of the kernel, "" where it is not there or does not answer now."""
    try:
        with path.open("rb") as f:
            return f.read(65_536).decode(errors="replace")
    except OSError:
        return ""


def _groups(root: Path) -> list[_Group]:
    """This process' control group and all above it; versions 2 and 1."""
    found = []
    for line in text_of(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, names = "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount, names = "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = [p for p in path.split("/") if p and p != ".."][:_MAX_LEVELS]
        for depth in range(len(parts), -1, -1):
            folder = root.joinpath(mount, *parts[:depth])
            if (folder / names[0]).exists():
                found.append(_Group(folder / names[0], folder / names[1], folder / "memory.stat"))
    return found
