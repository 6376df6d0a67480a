"""The service's side of the training child: start it, listen to it, end it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from apiary.errors import StoreError
from apiary.files import clear_partial, write_atomic
from apiary.process.deathsig import die_with_parent
from apiary.settings import GuestSettings
from apiary_edge.health.memory import text_of
from apiary_edge.training.job import TrainingEvent, TrainJob, parse

log = logging.getLogger(__name__)


class ChildJob(Protocol):
    """Something to do, as JSON; `out` is a folder of its own."""

    @property
    def out(self) -> Path:
        """Where the child may write."""
        ...

    def model_dump_json(self) -> str:
        """All of it."""
        ...


class Training(Protocol):
    """At most one training at a time; what it tells is collected by the service's loop."""

    def start(self, job: TrainJob) -> None:
        """Begin. Raises StoreError where the job cannot be written down."""
        ...

    def collect(self) -> list[TrainingEvent]:
        """What was told since the last call; the last line is `done`, `declined`, `failed` or `crashed`."""
        ...

    def stop(self) -> None:
        """End it, if it runs; nothing of it is told any more."""
        ...

    def freeze(self) -> None:
        """Let it rest where it stands, with its memory, until `thaw`."""
        ...

    def thaw(self) -> None:
        """Let it go on."""
        ...

    def resident(self) -> int:
        """Bytes of memory that it holds; 0 where none runs."""
        ...


class TrainingProcess:
    """`python -m MODULE JOB` as a child, the trainer by default. A thread reads its lines, wakes the loop."""

    def __init__(
        self, wake: Callable[[], None], guest: GuestSettings, module: str = "apiary_edge.training.worker"
    ):
        self._module = module
        self._wake = wake
        self._guest = guest
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._told: deque[TrainingEvent] = deque(maxlen=1000)

    def start(self, job: ChildJob) -> None:
        """Write the job down and start the child on it."""
        self.stop()
        clear_partial(job.out)
        file = job.out / "job.json"
        write_atomic(file, job.model_dump_json().encode(), sync=False)
        # One arena of the allocator: each more is 64 MB of address space, and a thread or two gain nothing.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        try:
            child = subprocess.Popen(
                [*self._politely(), sys.executable, "-m", self._module, str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=self._prepare,  # noqa: PLW1509 - it makes system calls only
            )
        except OSError as e:
            raise StoreError(f"cannot start the training child: {e.strerror}") from e
        self._child = child
        self._reader = threading.Thread(target=self._read, args=(child,), name="trainer-lines", daemon=True)
        self._reader.start()

    def collect(self) -> list[TrainingEvent]:
        """Lines since the last call."""
        told: list[TrainingEvent] = []
        while self._told:
            told.append(self._told.popleft())
        return told

    def stop(self) -> None:
        """Kill the child and forget its lines."""
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if self._reader is not None:
            self._reader.join(5.0)
            self._reader = None
        self._told.clear()

    def freeze(self) -> None:
        """Stop it by SIGSTOP; the kernel may swap its memory out, nothing of it is lost."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT; for one that was not frozen nothing."""
        self._signal(signal.SIGCONT)

    def resident(self) -> int:
        """What the kernel says of the child."""
        if self._child is None:
            return 0
        pages = text_of(Path(f"/proc/{self._child.pid}/statm")).split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)

    def _politely(self) -> list[str]:
        """What stands before the command: `ionice` is part of util-linux, and execs in its own place."""
        wanted = self._guest.idle_io and shutil.which("ionice") is not None
        return ["ionice", "-t", "-c", "3"] if wanted else []

    def _prepare(self) -> None:
        os.nice(self._guest.nice)
        if self._guest.max_cores is not None:
            allowed = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, allowed[: self._guest.max_cores])
        # Not SIGTERM: a frozen process would never take it.
        die_with_parent(signal.SIGKILL)

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None  # noqa: S101 - we asked for a pipe
        ended = False
        noise: deque[str] = deque(maxlen=5)
        with child.stdout:
            for line in child.stdout:
                told = parse(line)
                if told is None:
                    noise.append(line.decode(errors="replace").strip()[:200])
                    continue
                ended = ended or told.kind in ("done", "declined", "failed")
                self._told.append(told)
                self._wake()
        code = child.wait()
        if not ended:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            text = f"the training child {how}{hint}: {' | '.join(noise)}"
            self._told.append(TrainingEvent(kind="crashed", text=text[:500], signal=max(0, -code)))
            self._wake()


def scratch(state_dir: Path) -> Path:
    """Where a job and its update lie until the outbox has them."""
    return state_dir / "training"
