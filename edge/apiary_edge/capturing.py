"""The service's side of the capture child: start it, listen to it, start it again when it ends or hangs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from apiary.bus.deathsig import die_with_parent
from apiary.errors import StoreError
from apiary_edge.capture_job import CaptureJob, CaptureTold, parse
from apiary_edge.feature import Feature
from apiary_edge.policy import Backoff

log = logging.getLogger(__name__)

SILENT_S: Final = 30.0
"""On top of two of the camera's own timeouts: a child that says nothing for so long hangs in a driver."""
_RESTART_MAX_S: Final = 300.0
_END_S: Final = 5.0


class Capturing(Feature):
    """The camera child as a part of the node; what it tells goes to the log."""

    def __init__(self, process: CaptureProcess, node: str):
        self.text = "starting"
        """What it said last, for people."""
        self._process = process
        self._node = node

    def tick(self, now: float) -> None:
        """Keep the child going, and say what it tells."""
        self._process.tick(now)
        for told in self._process.collect():
            self._note(told)
            match told.kind:
                case "gone" | "trouble" | "failed":
                    log.warning("node=%s camera: %s", self._node, told.text)
                case "back" | "ended":
                    log.info("node=%s camera: %s", self._node, told.text or told.kind)
                case _:
                    log.debug(
                        "node=%s camera %s id=%s kept=%d", self._node, told.kind, told.id[:12], told.kept
                    )

    def close(self) -> None:
        """End the child."""
        self._process.stop()

    def _note(self, told: CaptureTold) -> None:
        match told.kind:
            case "kept" | "alive" | "back":
                self.text = "taking pictures"
            case _:
                self.text = told.text or told.kind


class CaptureProcess:
    """`apiary_edge.capture` as a child, for as long as the service runs. `wake` is called for each line."""

    def __init__(self, job: CaptureJob, wake: Callable[[], None], nice: int = 5):
        self._job = job
        self._wake = wake
        self._nice = nice
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._told: deque[CaptureTold] = deque(maxlen=1000)
        self._backoff = Backoff(_RESTART_MAX_S)
        self._start_at: float | None = 0.0
        self._heard = False
        self._heard_at = 0.0
        self._over = False

    def tick(self, now: float) -> None:
        """Start the child where it is due; end one that hangs. `now` is monotonic. Raises StoreError."""
        if self._child is None:
            if self._start_at is not None and now >= self._start_at:
                self._start(now)
            return
        if self._heard:
            self._heard, self._heard_at = False, now
        silent = now - self._heard_at
        limit = SILENT_S + 2 * self._job.camera.timeout_s
        if silent > limit:
            self._end()
            self._again(now, f"the capture child said nothing for {silent:.0f} s; it is started again")
        elif (code := self._child.poll()) is not None:
            self._end()
            if self._over:
                self._start_at = None  # settings do not mend themselves, and a file stays at its end
            else:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                self._again(now, f"the capture child {how}; it is started again")

    def collect(self) -> list[CaptureTold]:
        """Lines since the last call."""
        told: list[CaptureTold] = []
        while self._told:
            told.append(self._told.popleft())
        return told

    def stop(self) -> None:
        """End the child; it lets its camera go."""
        self._start_at = None
        self._end()

    def _start(self, now: float) -> None:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "apiary_edge.capture"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=self._prepare,  # noqa: PLW1509 - it calls os.nice and prctl only
            )
        except OSError as e:
            raise StoreError(f"cannot start the capture child: {e.strerror}") from e
        self._child, self._heard_at, self._heard, self._over = child, now, False, False
        assert child.stdin is not None  # noqa: S101 - we asked for a pipe
        with contextlib.suppress(BrokenPipeError), child.stdin:
            # Not as a file or an argument: a camera's address may hold its password.
            child.stdin.write(self._job.model_dump_json().encode())
        self._reader = threading.Thread(target=self._read, args=(child,), name="capture-lines", daemon=True)
        self._reader.start()

    def _again(self, now: float, why: str) -> None:
        pause = self._backoff.pause()
        self._start_at = now + pause
        self._told.append(CaptureTold(kind="gone", text=why, retry_s=pause))
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
        if self._reader is not None:
            self._reader.join(5.0)
            self._reader = None

    def _prepare(self) -> None:
        os.nice(self._nice)
        die_with_parent()

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None  # noqa: S101 - we asked for a pipe
        with child.stdout:
            for line in child.stdout:
                self._heard = True
                if (told := parse(line)) is not None:
                    if told.kind == "back":
                        self._backoff.reset()
                    self._over = self._over or told.kind in ("ended", "failed")
                    self._told.append(told)
                    self._wake()
