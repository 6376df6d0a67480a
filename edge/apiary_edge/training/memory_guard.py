"""The training child's own eye on memory: it gives up with a reason before the kernel ends it without one.

Control groups for memory are off on a Raspberry Pi, so nobody else bounds it. Under RLIMIT_AS an allocation
fails where Python can say so; on a machine that runs out, the kernel kills whom it likes.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apiary_edge.health.memory import MemoryRoom, address_limit
from apiary_edge.health.readings import MB

LOOK_EVERY_S: Final = 0.2
OOM_SCORE: Final = 600
"""On a scale to 1000: where the kernel must end somebody, it is this child, not the service."""
_ADDRESS_RESERVE: Final = 8 * MB
_STACK_BYTES: Final = 256 * 1024
_FROZEN_S: Final = 2.0
"""A look that comes so long after the one before: the process was stopped meanwhile."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes: resident, address space, and what the machine has left for anybody (None: it does not say)."""

    resident: int
    address: int
    available: int | None


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bytes; None: no limit. `reserve` is what the machine keeps."""

    reserve: int
    resident: int | None = None
    address: int | None = None

    def broken(self, use: MemoryUse) -> str | None:
        """Why training must end now, or None."""
        took = f"training took {use.resident // MB} MB"
        if self.resident is not None and use.resident > self.resident:
            return f"{took}, may take {self.resident // MB} MB (edge.guest.max_memory_mb)"
        if use.available is not None and use.available < self.reserve:
            left, reserve = use.available // MB, self.reserve // MB
            return f"{took}, the machine had {left} MB of memory left; {reserve} MB are kept for others"
        if self.address is not None and use.address > self.address - _ADDRESS_RESERVE:
            return (
                f"{took}, its address space {use.address // MB} MB of {self.address // MB} MB "
                "(RLIMIT_AS, ulimit -v)"
            )
        return None


def limits(reserve_mb: int, max_memory_mb: int | None) -> MemoryLimits:
    """The job's limits, and the one that this process was started under."""
    resident = max_memory_mb * MB if max_memory_mb is not None else None
    return MemoryLimits(reserve_mb * MB, resident, address_limit())


def usage() -> Callable[[], MemoryUse]:
    """Reads this process and its machine; a look takes a tenth of a millisecond."""
    room, size = MemoryRoom(), os.sysconf("SC_PAGE_SIZE")

    def look() -> MemoryUse:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()
        return MemoryUse(int(pages[1]) * size, int(pages[0]) * size, room.available())

    return look


def be_first_to_go(process: Path = Path("/proc/self")) -> None:
    """Ask the kernel to end this process before others where memory runs out. Nothing where it cannot."""
    with contextlib.suppress(OSError):
        (process / "oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


class FrozenTime:
    """How long a process was stopped (SIGSTOP), by looks every `LOOK_EVERY_S` that came late."""

    def __init__(self, now: float):
        self.seconds = 0.0
        self._looked_at = now

    def look(self, now: float) -> None:
        """A look is taken now (monotonic)."""
        if now - self._looked_at > _FROZEN_S:
            self.seconds += now - self._looked_at - LOOK_EVERY_S
        self._looked_at = now


class MemoryGuard:
    """A thread that calls `give_up` once, with the reason, when a limit is broken."""

    def __init__(
        self,
        bounds: MemoryLimits,
        give_up: Callable[[str], None],
        *,
        look: Callable[[], MemoryUse] | None = None,
    ):
        self._frozen = FrozenTime(time.monotonic())
        self._bounds = bounds
        self._give_up = give_up
        self._look = look or usage()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-guard", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        # The usual 8 MB are address space too.
        before = threading.stack_size(_STACK_BYTES)
        self._thread.start()
        threading.stack_size(before)

    def stop(self) -> None:
        """The work is done."""
        self._over.set()

    def awake(self) -> float:
        """Monotonic seconds, without those while the process was frozen."""
        return time.monotonic() - self._frozen.seconds

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self._frozen.look(time.monotonic())
            try:
                why = self._bounds.broken(self._look())
            except OSError:  # no /proc: nothing to judge by
                return
            if why is not None and not self._over.is_set():
                self._give_up(why)
                return
