"""A child that runs for as long as the service does, and is started again when it ends or hangs.

The capture child and the prediction child are of this kind.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from apiary.errors import StoreError
from apiary.process.child import ChildProcess, ProcessLimits, how_ended, light_environment, start
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.capture.policy import Backoff
from apiary_edge.child_messages import ChildEvent

Event = TypeVar("Event", bound=ChildEvent)

_RESTART_MAX_S: Final = 300.0
_END_S: Final = 5.0
_PRINTED_CHARS: Final = 300
_NICE: Final = 5


class LastingChild(Generic[Event]):
    """`python -m MODULE < job`, which reports by lines on its standard output. `wake` is called for each.

    It prints a line at least every `silent_s`, or it hangs. When it is started again that is reported as a
    camera that is gone for the time.
    """

    name = "child"
    module = ""
    well: tuple[str, ...] = ()
    """Kinds of events after which the next restart comes soon again: the child works."""
    over: tuple[str, ...] = ()
    """Kinds after which the child ends for good: starting it again would change nothing."""

    def __init__(self, job: bytes, silent_s: float, wake: Callable[[], None]):
        self._job = job
        self._silent_s = silent_s
        self._wake = wake
        self._child: ChildProcess[Event | CaptureEvent] | None = None
        self._events: list[Event | CaptureEvent] = []
        self._backoff = Backoff(_RESTART_MAX_S)
        self._start_at: float | None = 0.0
        self._heard_at = 0.0
        self._over = False

    @staticmethod
    def parse(line: bytes) -> Event | CaptureEvent | None:
        """A line of the child, None for anything that a library printed."""
        return CaptureEvent.parse(line)

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
            self._start_again(now, f"was silent for {silent:.0f} s; it is started again")

    def collect(self) -> list[Event | CaptureEvent]:
        """Events since the last call, as of the last `tick`."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """End the child; it lets go of what it holds."""
        self._start_at = None
        self._end()

    def _start(self, now: float) -> None:
        try:
            process = start(
                [sys.executable, "-m", self.module],
                limits=ProcessLimits(nice=_NICE),
                env=light_environment(),
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as e:
            raise StoreError(f"cannot start the {self.name} child: {e.strerror}") from e
        # The job is neither a file nor an argument: a camera's address may hold its password.
        self._child = ChildProcess(process, self.parse, wake=self._wake, name=self.name, job=self._job)
        self._heard_at, self._over = now, False

    def _receive(self, events: list[Event | CaptureEvent], now: float) -> None:
        for event in events:
            self._heard_at = now
            if event.kind in self.well:
                self._backoff.reset()
            self._over = self._over or event.kind in self.over
        self._events += events

    def _start_again(self, now: float, why: str) -> None:
        pause = self._backoff.pause()
        self._start_at = now + pause
        # As if the camera were gone.
        self._events.append(CaptureEvent(kind="gone", text=f"the {self.name} child {why}", retry_s=pause))

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(_END_S)
