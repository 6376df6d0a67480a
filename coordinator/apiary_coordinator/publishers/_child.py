"""Starts the SDK's child and follows its events, with a limit for the first answer and one for all."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from pydantic import ValidationError

from apiary.errors import PublishError
from apiary.process.deathsig import die_with_parent
from apiary_coordinator.publishers._job import EVENT, Event, Failed, PublishJob, Reached
from apiary_coordinator.publishers.base import PublishProgress

log = logging.getLogger(__name__)

COMMAND: Final = [sys.executable, "-m", "apiary_coordinator.publishers._sdk"]
_LINE_BYTES: Final = 65536
_LEAVE_S: Final = 2.0
_KEPT_BYTES: Final = 2000


def run(
    job: PublishJob,
    key: str,
    on_event: Callable[[Event], None],
    watch: PublishProgress,
    *,
    reach_s: float,
    until: float,
    command: Sequence[str] = tuple(COMMAND),
) -> None:
    """Have the child do the job. Raises PublishError with its message; the child is gone when this returns.

    `until` is on the monotonic clock.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - it calls prctl only
        # The key by the environment alone: arguments are for everyone to see, files stay.
        # Its temporary files lie in a folder of ours: ended by a signal, it does not clean up.
        env=os.environ | {"EI_API_KEY": key, "PYTHONUNBUFFERED": "1", "TMPDIR": str(job.out.parent)},
    )
    assert child.stdin and child.stdout and child.stderr  # noqa: S101 - we asked for pipes
    try:
        try:
            child.stdin.write(job.model_dump_json().encode())
            child.stdin.close()
        except BrokenPipeError:
            pass  # it ended at once; what it printed says why
        follower = _Follower(child, key, on_event)
        follower.follow(job, watch, time.monotonic() + reach_s, reach_s, until)
    finally:
        _end(child)
        for pipe in (child.stdin, child.stdout, child.stderr):
            pipe.close()


class _Follower:
    def __init__(self, child: subprocess.Popen[bytes], key: str, on_event: Callable[[Event], None]):
        self._child = child
        self._key = key
        self._on_event = on_event
        self._reached = False
        self._failed: Failed | None = None
        self._rest = b""
        self._printed = b""

    def follow(
        self, job: PublishJob, watch: PublishProgress, reach_until: float, reach_s: float, until: float
    ) -> None:
        assert self._child.stdout and self._child.stderr  # noqa: S101
        with selectors.DefaultSelector() as waits:
            waits.register(self._child.stdout, selectors.EVENT_READ)
            waits.register(self._child.stderr, selectors.EVENT_READ)
            while waits.get_map():
                watch.check()
                now = time.monotonic()
                if not self._reached and now >= min(reach_until, until):
                    raise PublishError(
                        f"{job.api_endpoint} gave no answer within {reach_s:g} s (publish.reach_s): "
                        "is this machine online?"
                    )
                if now >= until:
                    raise PublishError("publishing was ended at its limit (publish.timeout_s)")
                for key, _ in waits.select(0.5):
                    data = os.read(key.fd, _LINE_BYTES)
                    if not data:
                        waits.unregister(key.fileobj)
                    elif key.fileobj is self._child.stderr:
                        self._printed = (self._printed + data)[-_KEPT_BYTES:]
                    else:
                        self._take(data)
        code = self._child.wait(_LEAVE_S)
        printed = " | ".join(self._printed.decode(errors="replace").replace(self._key, "(key)").split("\n"))
        if printed.strip(" |"):
            log.debug("edge_impulse sdk: %s", printed)
        if self._failed is not None:
            retry = self._failed.retry and self._reached
            raise PublishError(self._failed.message, retry=retry)
        if code != 0:
            how = f"by signal {-code} (out of memory?)" if code < 0 else f"with code {code}"
            raise PublishError(f"the SDK's process ended {how}: {printed[-500:].strip(' |')}", retry=True)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            raise PublishError("the SDK's process sends a line without end")
        for line in lines:
            try:
                event = EVENT.validate_json(line)
            except ValidationError:
                raise PublishError(f"the SDK's process says {line[:120]!r}, expected an event") from None
            match event:
                case Reached():
                    self._reached = True
                case Failed():
                    self._failed = event
                    continue
            self._on_event(event)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
