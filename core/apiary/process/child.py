"""Child processes: started in a session of their own, read line by line, and ended for certain.

Training, cameras, exports, publishers, brokers and reports are started here. On Linux a child also ends when
this process does, however this process ends; its own session keeps Ctrl-C in a terminal away from it.

    child = ChildProcess(start([sys.executable, "-m", "package.worker"]), parse, wake=loop.wake)
    ...
    for event in child.collect(): ...
    if (code := child.poll()) is not None: log.info("the worker %s", how_ended(code))
    child.end(grace_s=5)
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Generic, TypeVar

Line = TypeVar("Line")

MAX_LINE_BYTES: Final = 65536
"""A longer line comes in parts."""
_MAX_WAITING: Final = 1000
"""Lines that nobody has collected; the oldest go first."""
_PRINTED_LINES: Final = 5
_PRINTED_CHARS: Final = 4096
"""Kept of each of the last lines that `parse` does not know."""
_JOIN_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_LIGHT: Final = {
    # A pool of threads costs memory and is of no use to a runtime of one thread.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # pydantic looks through every installed package for plug-ins; there are none.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What a child may take. `max_file_bytes` bounds each file it writes and forbids core dumps.

    The kernel sends `death_signal` when the thread that started the child is gone. A child that may be
    stopped by SIGSTOP needs SIGKILL, since other signals wait until it is continued.
    """

    nice: int = 0
    max_cores: int | None = None
    max_file_bytes: int | None = None
    death_signal: signal.Signals = signal.SIGTERM

    def apply(self) -> None:
        """Limit this process. Makes system calls only, as must be between fork and exec."""
        if self.nice:
            os.nice(self.nice)
        if self.max_cores is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.max_cores])
        if self.max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_file_bytes, self.max_file_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        die_with_parent(self.death_signal)


_NO_LIMITS: Final = ProcessLimits()


def start(
    command: Sequence[str],
    *,
    limits: ProcessLimits = _NO_LIMITS,
    confine: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.STDOUT,
) -> subprocess.Popen[bytes]:
    """Start a program as the leader of its own session. Raises OSError.

    `confine` is called in the child last, and makes system calls only (`Confinement.prepare`).
    """

    def before() -> None:
        limits.apply()
        if confine is not None:
            confine()

    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=cwd,
        start_new_session=True,
        preexec_fn=before,  # noqa: PLW1509 - it makes system calls only
    )


def light_environment(**variables: str) -> dict[str, str]:
    """This process's environment for a Python child that computes with one thread; settings in it stay.

    The libraries read it while they are loaded, so it is set before the child starts.
    """
    return {**_LIGHT, **os.environ, **variables}


def wait(process: subprocess.Popen[bytes], timeout_s: float | None = None) -> int | None:
    """The exit code, None where it still runs after `timeout_s`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout_s)
    return None


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a started program and to whatever it has started, where any of them still run."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def end(process: subprocess.Popen[bytes], grace_s: float = 0.0) -> int:
    """End a started program and whatever it has started; its exit code.

    SIGKILL at once, or SIGTERM and SIGKILL after `grace_s` where it still runs by then.
    """
    if grace_s and process.poll() is None:
        signal_group(process, signal.SIGTERM)
        wait(process, grace_s)
    signal_group(process, signal.SIGKILL)
    return process.wait()


def how_ended(code: int) -> str:
    """An exit code in words: `ended with code 3`, `was ended by signal 9 (out of memory?)`."""
    if code >= 0:
        return f"ended with code {code}"
    return f"was ended by signal {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}"


def run_to_end(command: Sequence[str], *, timeout_s: float) -> tuple[int | None, str]:
    """Run a program to its end: its exit code, None where it was killed after `timeout_s`, and `printed`.

    Raises OSError where it cannot be started.
    """
    child = ChildProcess[bytes](start(command), lambda line: None)
    try:
        wait(child.process, timeout_s)
        return child.poll(), child.printed
    finally:
        child.end()


class ChildProcess(Generic[Line]):
    """A started program whose piped output is read by threads.

    What `parse` makes of a line of standard output is kept for `collect`; of lines for which it returns None,
    and of standard error where that is a pipe of its own, the last are in `printed`. `wake` is called, from a
    thread, for each parsed line and at the end. `job` is written to standard input, where that is a pipe.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        parse: Callable[[bytes], Line | None],
        *,
        wake: Callable[[], None] = lambda: None,
        name: str = "child",
        job: bytes = b"",
    ):
        self.process = process
        self._wake = wake
        self._lines: deque[Line] = deque(maxlen=_MAX_WAITING)
        self._printed: deque[str] = deque(maxlen=_PRINTED_LINES)
        self._news = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, known), name=f"{name}-{what}", daemon=True)
            for what, pipe, known in (
                ("stdout", process.stdout, parse),
                ("stderr", process.stderr, lambda line: None),
            )
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()
        if process.stdin is not None:
            # It may have ended already; its exit code and what it printed say why.
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(job)

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self.process.pid

    @property
    def printed(self) -> str:
        """The last lines that it printed and `parse` did not know, joined by ` | `."""
        return " | ".join(self._printed)

    def poll(self) -> int | None:
        """Its exit code, once it has ended and everything that it printed was read."""
        code = self.process.poll()
        if code is not None:
            self._join()
        return code

    def collect(self) -> list[Line]:
        """The parsed lines since the last call."""
        lines: list[Line] = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines

    def batches(self, every_s: float = 0.5) -> Iterator[list[Line]]:
        """Parsed lines as they come, an empty list after `every_s` without any; ends when the child has."""
        ended = False
        while not ended:
            ended = self.poll() is not None
            yield self.collect()
            if not ended:
                self._news.wait(every_s)
                self._news.clear()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to whatever it has started."""
        signal_group(self.process, number)

    def end(self, grace_s: float = 0.0) -> None:
        """End it as `end` does; its last lines can still be collected."""
        end(self.process, grace_s)
        self._join()

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(_JOIN_S)

    def _read(self, pipe: IO[bytes], parse: Callable[[bytes], Line | None]) -> None:
        with pipe:
            while line := pipe.readline(MAX_LINE_BYTES):
                if (parsed := parse(line)) is not None:
                    self._lines.append(parsed)
                    self._notify()
                elif text := line.decode(errors="replace").strip():
                    self._printed.append(text[:_PRINTED_CHARS])
        self.process.wait()
        self._notify()

    def _notify(self) -> None:
        self._news.set()
        self._wake()


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to signal this process when the thread that started it is gone. Linux; else nothing."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, int(by), 0, 0, 0)


def _find_prctl() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return prctl


# Looked up at import: loading a library between fork and exec may deadlock.
_PRCTL: Final = _find_prctl()
