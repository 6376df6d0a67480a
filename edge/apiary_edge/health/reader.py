"""Reads the machine: /proc, /sys, the disk. Where a file is not there, that figure is None."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from apiary_edge.health import readings as figures
from apiary_edge.health.readings import Readings

_FIRMWARE: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
_MAX_ZONES: Final = 32
_MAX_LEVELS: Final = 16
_ASK_S: Final = 5.0
"""`vcgencmd` answers within some milliseconds; after this it hangs and is ended."""


class Reader:
    """`root` stands for `/`, so that a folder of files can stand for a machine. `clock` is monotonic."""

    def __init__(self, state_dir: Path, *, clock: Callable[[], float], root: Path = Path("/")):
        self._root = root
        self._state_dir = state_dir
        self._firmware = Firmware(root, clock)

    def read(self) -> Readings:
        """The machine now; costs less than a millisecond and never waits."""
        memory = figures.meminfo(self._text("proc/meminfo"))
        disk_total, disk_free = self._disk()
        return Readings(
            heat=figures.hottest(self._zones()),
            throttled=self._firmware.throttled(),
            memory_total=memory.get("MemTotal"),
            memory_available=memory_available(self._root),
            address_limit=address_limit(),
            disk_total=disk_total,
            disk_free=disk_free,
            load=figures.first_float(self._text("proc/loadavg")),
            cores=os.cpu_count(),
            uptime_s=figures.first_float(self._text("proc/uptime")),
            service_bytes=self._resident(),
        )

    def close(self) -> None:
        """End what still runs."""
        self._firmware.close()

    def _text(self, path: str) -> str:
        return _text(self._root / path)

    def _zones(self) -> Iterator[tuple[str, str]]:
        folder = self._root / "sys/class/thermal"
        for zone in sorted(folder.glob("thermal_zone*"))[:_MAX_ZONES]:
            yield _text(zone / "type").strip(), _text(zone / "temp").strip()

    def _disk(self) -> tuple[int | None, int | None]:
        try:
            found = os.statvfs(self._state_dir)
        except OSError:
            return None, None
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize

    def _resident(self) -> int | None:
        pages = self._text("proc/self/statm").split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else None


class Firmware:
    """The Pi's throttling flags: a file where the kernel has it, else the firmware's own program.

    The program is started at one reading and its answer taken at a later one: no reading waits for it.
    """

    def __init__(self, root: Path, clock: Callable[[], float]):
        self._file = root / _FIRMWARE
        self._program = shutil.which("vcgencmd", path=os.pathsep.join(_folders(root)))
        self._clock = clock
        self._asked: subprocess.Popen[bytes] | None = None
        self._asked_at = 0.0
        self._last: int | None = None

    def throttled(self) -> int | None:
        """The newest answer; None where this machine has no such firmware."""
        if self._file.exists():
            return figures.throttled(_text(self._file))
        if self._program is None:
            return None
        if self._asked is None:
            with contextlib.suppress(OSError):
                self._asked = subprocess.Popen(
                    [self._program, "get_throttled"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                self._asked_at = self._clock()
        elif self._asked.poll() is not None:
            assert self._asked.stdout is not None  # noqa: S101 - we asked for a pipe
            with self._asked.stdout as out:
                answer = out.read(200).decode(errors="replace")
            self._last, self._asked = figures.throttled(answer), None
        elif self._clock() - self._asked_at > _ASK_S:
            self._last = None
            self.close()
        return self._last

    def close(self) -> None:
        """End a program that still runs."""
        if self._asked is not None:
            self._asked.kill()
            self._asked.communicate()
            self._asked = None


def memory_available(root: Path) -> int | None:
    """Bytes that a new process may have: of the machine, and of every control group around this one."""
    rooms = [*_cgroup_rooms(root)]
    machine = figures.meminfo(_text(root / "proc/meminfo")).get("MemAvailable")
    return min([*rooms, machine] if machine is not None else rooms, default=None)


def address_limit() -> int | None:
    """RLIMIT_AS in bytes, which children inherit; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Of this process' control group and all above it, those with a limit; versions 2 and 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
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
            room = figures.cgroup_room(*(_text(folder / name) for name in (*names, "memory.stat")))
            if room is not None:
                yield room


def _text(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return f.read(65_536).decode(errors="replace")
    except OSError:
        # A file that is not there, and a sensor that does not answer now.
        return ""


def _folders(root: Path) -> list[str]:
    return [str(root / "usr/bin"), str(root / "opt/vc/bin")]
