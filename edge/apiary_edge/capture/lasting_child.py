"""A child that runs for as long as the service does, and is started again when it ends or hangs.

The capture child and the prediction child are of this kind.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from apiary.errors import StoreError
from apiary.process.child import ChildProcess, ProcessLimits, how_ended, light_environment, start
from apiary_edge.capture.policy import Backoff

Line = TypeVar("Line")

_RESTART_MAX_S: Final = 300.0
_END_S: Final = 5.0
_PRINTED_CHARS: Final = 300


class LastingChild(Generic[Line]):
    """`python -m MODULE < job`, which reports by lines on its standard output. `wake` is called for each.

    It prints a line at least every `silent_s`, or it hangs. Subclasses give the lines their meaning.
    """

    name = "child"
    module = ""

    def __init__(self, job: bytes, silent_s: float, wake: Callable[[], None], nice: int = 5):
        self._job = job
        self._silent_s = silent_s
        self._wake = wake
        self._nice = nice
        self._child: ChildProcess[Line] | None = None
        self._lines: list[Line] = []
        self._backoff = Backoff(_RESTART_MAX_S)
        self._start_at: float | None = 0.0
        self._heard_at = 0.0
        self._over = False

    def parse(self, line: bytes) -> Line | None:
        """A line of the child, None for anything that a library printed."""
        raise NotImplementedError

    def broken(self, why: str, retry_s: float) -> Line:
        """The line that reports that the child is started again."""
        raise NotImplementedError

    def is_well(self, line: Line) -> bool:
        """Whether the child works: the next restart comes soon again."""
        return False

    def is_over(self, line: Line) -> bool:
        """Whether the child ends for good after this line, and starting it again would change nothing."""
        return False

    def tick(self, now: float) -> None:
        """Start the child where it is due; end one that hangs. `now` is monotonic. Raises StoreError."""
        if self._child is None:
            if self._start_at is not None and now >= self._start_at:
                self._start(now)
            return
        code = self._child.poll()
        self._receive(self._child.collect(), now)
        silent = now - self._heard_at
        if code is not None:
            printed = self._child.printed[-_PRINTED_CHARS:]
            self._end()
            if self._over:
                self._start_at = None  # settings do not mend themselves, and a file stays at its end
            else:
                why = f"{how_ended(code)}; it is started again{printed and f': {printed}'}"
                self._start_again(now, why)
        elif silent > self._silent_s:
            self._end()
            self._start_again(now, f"said nothing for {silent:.0f} s; it is started again")

    def collect(self) -> list[Line]:
        """Lines since the last call, as of the last `tick`."""
        lines, self._lines = self._lines, []
        return lines

    def stop(self) -> None:
        """End the child; it lets go of what it holds."""
        self._start_at = None
        self._end()

    def _start(self, now: float) -> None:
        try:
            process = start(
                [sys.executable, "-m", self.module],
                limits=ProcessLimits(nice=self._nice),
                env=light_environment(),
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as e:
            raise StoreError(f"cannot start the {self.name} child: {e.strerror}") from e
        # The job is neither a file nor an argument: a camera's address may hold its password.
        self._child = ChildProcess(process, self.parse, wake=self._wake, name=self.name, job=self._job)
        self._heard_at, self._over = now, False

    def _receive(self, lines: list[Line], now: float) -> None:
        for line in lines:
            self._heard_at = now
            if self.is_well(line):
                self._backoff.reset()
            self._over = self._over or self.is_over(line)
        self._lines += lines

    def _start_again(self, now: float, why: str) -> None:
        pause = self._backoff.pause()
        self._start_at = now + pause
        self._lines.append(self.broken(f"the {self.name} child {why}", pause))

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(_END_S)
