"""A child that runs for as long as the service does, and is started again when it ends or hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from apiary.errors import StoreError
from apiary.process.deathsig import die_with_parent
from apiary_edge.capture.policy import Backoff

Line = TypeVar("Line")

_RESTART_MAX_S: Final = 300.0
_END_S: Final = 5.0
_SAID_LINES: Final = 4
_SAID_BYTES: Final = 300
"""Of the last that a child printed on standard error, told where it ends by itself."""


class LastingChild(Generic[Line]):
    """`python -m MODULE < job`, which tells lines on its standard output. `wake` is called for each.

    It says something at least every `silent_s`, or it hangs. What its lines mean is said by the class made of
    this one.
    """

    name = "child"
    module = ""

    def __init__(self, job: bytes, silent_s: float, wake: Callable[[], None], nice: int = 5):
        self._job = job
        self._silent_s = silent_s
        self._wake = wake
        self._nice = nice
        self._child: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []
        self._said: deque[str] = deque(maxlen=_SAID_LINES)
        self._told: deque[Line] = deque(maxlen=1000)
        self._backoff = Backoff(_RESTART_MAX_S)
        self._start_at: float | None = 0.0
        self._heard = False
        self._heard_at = 0.0
        self._over = False

    def parse(self, line: bytes) -> Line | None:
        """What a line says, None for anything that a library printed."""
        raise NotImplementedError

    def broken(self, why: str, retry_s: float) -> Line:
        """The line that says that it is started again."""
        raise NotImplementedError

    def is_well(self, told: Line) -> bool:
        """Whether it works: the next restart comes soon again."""
        return False

    def is_over(self, told: Line) -> bool:
        """Whether it ends for good after this, and starting it again would change nothing."""
        return False

    def tick(self, now: float) -> None:
        """Start the child where it is due; end one that hangs. `now` is monotonic. Raises StoreError."""
        if self._child is None:
            if self._start_at is not None and now >= self._start_at:
                self._start(now)
            return
        if self._heard:
            self._heard, self._heard_at = False, now
        silent = now - self._heard_at
        if silent > self._silent_s:
            self._end()
            self._again(now, f"the {self.name} child said nothing for {silent:.0f} s; it is started again")
        elif (code := self._child.poll()) is not None:
            self._end()
            if self._over:
                self._start_at = None  # settings do not mend themselves, and a file stays at its end
            else:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                said = " | ".join(self._said)[-_SAID_BYTES:]
                self._again(now, f"the {self.name} child {how}; it is started again{said and f': {said}'}")

    def collect(self) -> list[Line]:
        """Lines since the last call."""
        told: list[Line] = []
        while self._told:
            told.append(self._told.popleft())
        return told

    def stop(self) -> None:
        """End the child; it lets go of what it holds."""
        self._start_at = None
        self._end()

    def _start(self, now: float) -> None:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=self._prepare,  # noqa: PLW1509 - it calls os.nice and prctl only
            )
        except OSError as e:
            raise StoreError(f"cannot start the {self.name} child: {e.strerror}") from e
        self._child, self._heard_at, self._heard, self._over = child, now, False, False
        assert child.stdin is not None  # noqa: S101 - we asked for a pipe
        with contextlib.suppress(BrokenPipeError), child.stdin:
            # Not as a file or an argument: a camera's address may hold its password.
            child.stdin.write(self._job)
        self._said.clear()
        self._readers = [
            threading.Thread(target=read, args=(child,), name=f"{self.name}-{what}", daemon=True)
            for what, read in (("lines", self._read), ("errors", self._listen))
        ]
        for reader in self._readers:
            reader.start()

    def _again(self, now: float, why: str) -> None:
        pause = self._backoff.pause()
        self._start_at = now + pause
        self._told.append(self.broken(why, pause))
        self._wake()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                child.terminate()
                try:
                    child.wait(_END_S)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for reader in self._readers:
            reader.join(5.0)
        self._readers = []

    def _prepare(self) -> None:
        os.nice(self._nice)
        die_with_parent()

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None  # noqa: S101 - we asked for a pipe
        with child.stdout:
            for line in child.stdout:
                self._heard = True
                if (told := self.parse(line)) is not None:
                    if self.is_well(told):
                        self._backoff.reset()
                    self._over = self._over or self.is_over(told)
                    self._told.append(told)
                    self._wake()

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        """Keep the end of what it prints: a bug of ours, or a driver's last words."""
        assert child.stderr is not None  # noqa: S101 - we asked for a pipe
        with child.stderr:
            while line := child.stderr.readline(4096):
                if text := line.decode(errors="replace").strip():
                    self._said.append(text[:_SAID_BYTES])
