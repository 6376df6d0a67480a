"""The service's side of the testing child: start it, see how it ended, end it where it takes too long."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError

from apiary.errors import StoreError
from apiary.files import write_atomic
from apiary.process.deathsig import die_with_parent
from apiary_edge.releases.job import TrialJob, TrialResult
from apiary_edge.releases.slot import Findings
from apiary_edge.releases.state import TrialCrashed, TrialDone

_FILE_BYTES: Final = 64 * 2**20
"""What the child may write to one file: shared memory of a program counts too."""
_SAID_BYTES: Final = 300


class Trial(Protocol):
    """At most one test at a time."""

    def start(self, job: TrialJob) -> None:
        """Begin. Raises StoreError."""
        ...

    def poll(self) -> TrialDone | TrialCrashed | None:
        """How it ended, once; None while it runs or where none does."""
        ...

    def stop(self) -> None:
        """End it, if it runs; nothing of it is told any more."""
        ...


class TrialProcess:
    """`apiary_edge.releases.selftest` as a child that may take `limit_s`. `clock` is monotonic."""

    def __init__(self, limit_s: float, *, nice: int = 10, clock: Callable[[], float] = time.monotonic):
        self._limit_s = limit_s
        self._nice = nice
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._out = Path()
        self._until = 0.0

    def start(self, job: TrialJob) -> None:
        """Write the job down and start the child on it."""
        self.stop()
        self._out = job.out
        file, said = job.out.with_name("job.json"), job.out.with_name("test.log")
        job.out.unlink(missing_ok=True)
        write_atomic(file, job.model_dump_json().encode(), sync=False)
        try:
            with said.open("wb") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "apiary_edge.releases.selftest", str(file)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=self._prepare,  # noqa: PLW1509 - it calls nice, setrlimit and prctl only
                )
        except OSError as e:
            raise StoreError(f"cannot start the test of a release: {e.strerror}") from e
        self._until = self._clock() + self._limit_s

    def poll(self) -> TrialDone | TrialCrashed | None:
        """How it ended, once."""
        child = self._child
        if child is None:
            return None
        code = child.poll()
        if code is None:
            if self._clock() < self._until:
                return None
            self.stop()
            return TrialCrashed(f"its test took longer than {self._limit_s:g} s (edge.slots.test_s)")
        self._child = None
        if code != 0:
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return TrialCrashed(f"its test ended {how}{hint}{self._said()}")
        return self._result()

    def stop(self) -> None:
        """Kill the child; a program that it started dies with it."""
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _result(self) -> TrialDone | TrialCrashed:
        try:
            result = TrialResult.model_validate_json(self._out.read_bytes())
        except (OSError, ValidationError):
            return TrialCrashed(f"its test left no result{self._said()}")
        tested = Findings(result.pictures, result.right, result.right_before, result.inference_ms)
        return TrialDone(tested, result.failed)

    def _said(self) -> str:
        try:
            with self._out.with_name("test.log").open("rb") as f:
                f.seek(max(0, f.seek(0, os.SEEK_END) - _SAID_BYTES))
                text = " | ".join(f.read().decode(errors="replace").split("\n")).strip(" |")
        except OSError:
            return ""
        return f": {text}" if text else ""

    def _prepare(self) -> None:
        os.nice(self._nice)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        die_with_parent()
