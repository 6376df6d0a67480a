"""A forked child that dies before a chosen call that changes the disk: power that goes at any step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

CALLS = (
    "fsync",
    "fdatasync",
    "replace",
    "rename",
    "unlink",
    "pwrite",
    "posix_fallocate",
    "open",
    "close",
    "mkdir",
)

DEAD, DONE, BROKEN = 9, 0, 1


class Countdown:
    """Ends the process before call number `left`; the trace of the calls lets a test look at their order."""

    def __init__(self, left: int):
        self.left = left
        self.trace: list[tuple[str, str]] = []

    def step(self, name: str, what: str) -> None:
        if self.left == 0:
            os._exit(DEAD)
        self.left -= 1
        self.trace.append((name, what))


class TornFile:
    """A file whose writes are two steps."""

    def __init__(self, file: IO[bytes], countdown: Countdown):
        self._file = file
        self._countdown = countdown

    def write(self, data: bytes | memoryview) -> int:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self._countdown.step("write", str(len(part)))
            self._file.write(part)
            self._file.flush()
        return len(data)

    def __enter__(self) -> TornFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def arm(countdown: Countdown) -> None:
    """Count every call that changes the disk. For a child only: nothing is put back."""
    for name in CALLS:
        real = getattr(os, name)

        def counted(*args: Any, _real: Any = real, _name: str = name, **more: Any) -> Any:
            countdown.step(_name, _of(args[0]))
            if _name == "pwrite":
                fd, data, offset = args
                half = len(data) // 2
                _real(fd, data[:half], offset)
                countdown.step(_name, "rest")
                return half + _real(fd, data[half:], offset + half)
            return _real(*args, **more)

        setattr(os, name, counted)
    fdopen: Any = os.fdopen
    os.fdopen = lambda *args, **more: TornFile(fdopen(*args, **more), countdown)  # type: ignore[assignment]  # in a child only


def _of(what: object) -> str:
    if isinstance(what, int):
        try:
            return Path(f"/proc/self/fd/{what}").readlink().name
        except OSError:
            return str(what)
    return Path(str(what)).name


def cut_at(k: int, act: Callable[[], object]) -> int:
    """Run `act` in a child that dies at call `k`; how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            arm(Countdown(k))
            act()
        except BaseException:
            os._exit(BROKEN)
        os._exit(DONE)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def every_cut(before: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """Cut at the first call, then at the second, ... until nothing is left to cut; `before` sets up anew."""
    k = 0
    while True:
        code = cut_at(k, before())
        assert code in (DEAD, DONE), f"the child broke at call {k}"
        yield code
        if code == DONE:
            assert k > 0
            return
        k += 1
        assert k < 500
