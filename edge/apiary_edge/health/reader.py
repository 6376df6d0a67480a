"""Reads the machine: /proc, /sys, the disk. Where a file is not there, that figure is None."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from apiary_edge.health import readings as figures
from apiary_edge.health.memory import MemoryRoom, address_limit, resident_bytes, text_of
from apiary_edge.health.readings import Readings

_FIRMWARE: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
_MAX_ZONES: Final = 32
_ASK_S: Final = 5.0
"""`vcgencmd` answers within some milliseconds; after this it hangs and is ended."""


class Reader:
    """`root` stands for `/`, so that a folder of files can stand for a machine. `clock` is monotonic."""

    def __init__(self, state_dir: Path, *, clock: Callable[[], float], root: Path = Path("/")):
        self._root = root
        self._state_dir = state_dir
        self._firmware = Firmware(root, clock)
        self._memory = MemoryRoom(root)

    def read(self) -> Readings:
        """The machine now; costs less than a millisecond and never waits."""
        memory = figures.meminfo(self._text("proc/meminfo"))
        disk_total, disk_free = self._disk()
        return Readings(
            heat=figures.hottest(self._zones()),
            throttled=self._firmware.throttled(),
            memory_total=memory.get("MemTotal"),
            memory_available=self._memory.available(),
            address_limit=address_limit(),
            disk_total=disk_total,
            disk_free=disk_free,
            load=figures.first_float(self._text("proc/loadavg")),
            cores=os.cpu_count(),
            uptime_s=figures.first_float(self._text("proc/uptime")),
            service_bytes=resident_bytes(self._root / "proc/self"),
        )

    def close(self) -> None:
        """End what still runs."""
        self._firmware.close()

    def _text(self, path: str) -> str:
        return text_of(self._root / path)

    def _zones(self) -> Iterator[tuple[str, str]]:
        folder = self._root / "sys/class/thermal"
        for zone in sorted(folder.glob("thermal_zone*"))[:_MAX_ZONES]:
            yield text_of(zone / "type").strip(), text_of(zone / "temp").strip()

    def _disk(self) -> tuple[int | None, int | None]:
        try:
            found = os.statvfs(self._state_dir)
        except OSError:
            return None, None
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


class Firmware:
    """The Pi's throttling flags: a file where the kernel has it, else the firmware's own program.

    The program is started at one reading and its answer taken at a later one: no reading waits for it.
    """

    def __init__(self, root: Path, clock: Callable[[], float]):
        self._file = root / _FIRMWARE
        self._program = shutil.which("vcgencmd", path=f"{root}/usr/bin:{root}/opt/vc/bin")
        self._clock = clock
        self._asked: subprocess.Popen[bytes] | None = None
        self._asked_at = 0.0
        self._last: int | None = None

    def throttled(self) -> int | None:
        """The newest answer; None where this machine has no such firmware."""
        if self._file.exists():
            return figures.throttled(text_of(self._file))
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
