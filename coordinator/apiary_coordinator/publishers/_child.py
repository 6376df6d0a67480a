"""Starts the SDK's child and follows its events, with a limit for the first answer and one for all."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from pydantic import ValidationError

from apiary.errors import PublishError
from apiary.process.child import ChildProcess, how_ended, start
from apiary_coordinator.publishers._job import EVENT, Event, Failed, PublishJob, Reached
from apiary_coordinator.publishers.base import PublishProgress

log = logging.getLogger(__name__)

COMMAND: Final = [sys.executable, "-m", "apiary_coordinator.publishers._sdk"]
_END_S: Final = 2.0


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
    process = start(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # The key by the environment alone: arguments are for everyone to see, files stay.
        # Its temporary files lie in a folder of ours: ended by a signal, it does not clean up.
        env=os.environ | {"EI_API_KEY": key, "PYTHONUNBUFFERED": "1", "TMPDIR": str(job.out.parent)},
    )
    child = ChildProcess[bytes](process, lambda line: line, job=job.model_dump_json().encode(), name="sdk")
    reach_until = min(time.monotonic() + reach_s, until)
    reached, failed = False, None
    try:
        for lines in child.batches():
            watch.check()
            for line in lines:
                match event := _event(line):
                    case Failed():
                        failed = event
                        continue
                    case Reached():
                        reached = True
                on_event(event)
            now = time.monotonic()
            if not reached and failed is None and now >= reach_until:
                raise PublishError(
                    f"{job.publish.api_endpoint} gave no answer within {reach_s:g} s (publish.reach_s): "
                    "is this machine online?"
                )
            if now >= until:
                raise PublishError("publishing was ended at its limit (publish.timeout_s)")
        code = child.poll() or 0
    finally:
        child.end(_END_S)
    printed = child.printed.replace(key, "(key)")
    if printed:
        log.debug("edge_impulse sdk: %s", printed)
    if failed is not None:
        raise PublishError(failed.message, retry=failed.retry and reached)
    if code != 0:
        raise PublishError(f"the SDK's process {how_ended(code)}: {printed[-500:]}", retry=True)


def _event(line: bytes) -> Event:
    if not line.endswith(b"\n"):
        raise PublishError("the SDK's process sends a line without end")
    try:
        return EVENT.validate_json(line)
    except ValidationError:
        raise PublishError(f"the SDK's process says {line.strip()[:120]!r}, expected an event") from None
