"""The service's side of the training child: start it, collect its events, end it.

The supervisor starts a round's training through `Training`; the background tasks use the same process class.
"""

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from apiary.errors import StoreError
from apiary.files import clear_partial, write_atomic
from apiary.process.child import ChildProcess, ProcessLimits, how_ended, light_environment, start
from apiary.settings import GuestSettings
from apiary_edge.health.memory import resident_bytes
from apiary_edge.training.job import TrainingEvent, TrainJob

_PRINTED_CHARS: Final = 400


class ChildJob(Protocol):
    """A job as JSON; `out` is a folder of its own."""

    @property
    def out(self) -> Path:
        """Where the child may write."""

    def model_dump_json(self) -> str:
        """The whole job."""


class Training(Protocol):
    """At most one training at a time; the service's loop collects its events."""

    def start(self, job: TrainJob) -> None:
        """Begin. Raises StoreError where the job cannot be written down."""

    def collect(self) -> list[TrainingEvent]:
        """Events since the last call; the last one is `done`, `declined`, `failed` or `crashed`."""

    def stop(self) -> None:
        """End it, if it runs, and drop its events."""

    def freeze(self) -> None:
        """Suspend it where it stands, with its memory, until `thaw`."""

    def thaw(self) -> None:
        """Let it continue."""

    def resident(self) -> int:
        """Bytes of memory that it holds; 0 where none runs."""


class TrainingProcess:
    """`python -m MODULE JOB` as a child, by default the trainer; `wake` is called for each of its events."""

    def __init__(
        self, wake: Callable[[], None], guest: GuestSettings, module: str = "apiary_edge.training.worker"
    ):
        self._module = module
        self._wake = wake
        self._guest = guest
        self._child: ChildProcess[TrainingEvent] | None = None
        self._concluded = False

    def start(self, job: ChildJob) -> None:
        """Write the job down and start the child on it."""
        self.stop()
        clear_partial(job.out)
        file = job.out / "job.json"
        write_atomic(file, job.model_dump_json().encode(), sync=False)
        # ionice is part of util-linux, and execs in its own place.
        idle = self._guest.idle_io and shutil.which("ionice") is not None
        prefix = ["ionice", "-t", "-c", "3"] if idle else []
        try:
            process = start(
                [*prefix, sys.executable, "-m", self._module, str(file)],
                # SIGKILL: a frozen process would never take SIGTERM.
                limits=ProcessLimits(self._guest.nice, self._guest.max_cores, death_signal=signal.SIGKILL),
                # One arena of the allocator: each more takes 64 MB of address space, for no gain.
                env=light_environment(MALLOC_ARENA_MAX="1"),
            )
        except OSError as e:
            raise StoreError(f"cannot start the training child: {e.strerror}") from e
        self._concluded = False
        self._child = ChildProcess(process, TrainingEvent.parse, wake=self._wake, name="trainer")

    def collect(self) -> list[TrainingEvent]:
        """Events since the last call, `crashed` among them where the child ended without a conclusion."""
        if (child := self._child) is None:
            return []
        code = child.poll()
        events = child.collect()
        self._concluded = self._concluded or any(e.kind in ("done", "declined", "failed") for e in events)
        if code is not None:
            self._child = None
            if not self._concluded:
                text = f"the training child {how_ended(code)}: {child.printed[-_PRINTED_CHARS:]}"
                events.append(TrainingEvent(kind="crashed", text=text, signal=max(0, -code)))
        return events

    def stop(self) -> None:
        """Kill the child and drop its events."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def freeze(self) -> None:
        """Suspend it by SIGSTOP; the kernel may swap its memory out, nothing of it is lost."""
        if self._child is not None:
            self._child.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT; no effect on one that was not frozen."""
        if self._child is not None:
            self._child.signal(signal.SIGCONT)

    def resident(self) -> int:
        """The child's resident memory in bytes, from /proc."""
        if self._child is None:
            return 0
        return resident_bytes(Path(f"/proc/{self._child.pid}")) or 0


def scratch(state_dir: Path) -> Path:
    """Where a job and its update lie until the outbox has them."""
    return state_dir / "training"
