"""The service's side of a release's trial: start the child, read its result, end one that takes too long."""

import logging
import sys
import time
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError

from apiary.errors import StoreError
from apiary.files import write_atomic
from apiary.process.child import ChildProcess, ProcessLimits, how_ended, light_environment, start
from apiary_edge.releases.job import TrialJob, TrialResult
from apiary_edge.releases.slot import Findings
from apiary_edge.releases.state import TrialCrashed, TrialDone

log = logging.getLogger(__name__)

_FILE_BYTES: Final = 64 * 2**20
"""What the child may write to one file: shared memory of a program counts too."""
_PRINTED_CHARS: Final = 300
_END_S: Final = 3.0
"""Longer than a program may take to end in order."""


class Trial(Protocol):
    """At most one test at a time."""

    def start(self, job: TrialJob) -> None:
        """Begin. Raises StoreError."""

    def poll(self) -> TrialDone | TrialCrashed | None:
        """How it ended, once; None while it runs or where none does."""

    def stop(self) -> None:
        """End it, if it runs, without a result."""


class TrialProcess:
    """`apiary_edge.releases.selftest` as a child that may take `limit_s`."""

    def __init__(self, limit_s: float, *, nice: int = 10):
        self._limit_s = limit_s
        self._nice = nice
        self._child: ChildProcess[bytes] | None = None
        self._out = Path()
        self._until = 0.0

    def start(self, job: TrialJob) -> None:
        """Write the job down and start the child on it."""
        self.stop()
        self._out = job.out
        file = job.out.with_name("job.json")
        job.out.unlink(missing_ok=True)
        write_atomic(file, job.model_dump_json().encode(), sync=False)
        try:
            process = start(
                [sys.executable, "-m", "apiary_edge.releases.selftest", str(file)],
                limits=ProcessLimits(self._nice, max_file_bytes=_FILE_BYTES),
                env=light_environment(),
            )
        except OSError as e:
            raise StoreError(f"cannot start the test of a release: {e.strerror}") from e
        self._child = ChildProcess(process, lambda line: None, name="trial")
        self._until = time.monotonic() + self._limit_s

    def poll(self) -> TrialDone | TrialCrashed | None:
        """How it ended, once."""
        child = self._child
        if child is None:
            return None
        code = child.poll()
        if code is None:
            if time.monotonic() < self._until:
                return None
            self.stop()
            return TrialCrashed(f"its test took longer than {self._limit_s:g} s (edge.slots.test_s)")
        self._child = None
        printed = child.printed[-_PRINTED_CHARS:]
        log.debug("the trial of a release %s: %s", how_ended(code), printed)
        why = f"its test {how_ended(code)}" if code else None
        result = None if why else self._result()
        return result or TrialCrashed(f"{why or 'its test left no result'}{printed and f': {printed}'}")

    def stop(self) -> None:
        """End the child, which ends what a program that it started has left; it dies with it in any case."""
        child, self._child = self._child, None
        if child is not None:
            child.end(_END_S)

    def _result(self) -> TrialDone | None:
        try:
            result = TrialResult.model_validate_json(self._out.read_bytes())
        except (OSError, ValidationError):
            return None
        tested = Findings(result.pictures, result.right, result.right_before, result.inference_ms)
        return TrialDone(tested, result.failed)
