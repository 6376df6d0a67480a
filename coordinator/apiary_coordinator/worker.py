"""Work that would hold up the loop, done in order on one thread; results come back to the loop."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

_CLOSE: Final = object()
Job = Callable[[], Any]
Then = Callable[[Any], None]


class Lane:
    """Marks the jobs of one owner: once it has `left`, their results are dropped."""

    def __init__(self) -> None:
        self.left = False


@dataclass(frozen=True, slots=True)
class Done:
    """A job that ended: its value, or the error it raised; `then` is called with the value on the loop."""

    job: Callable[[], Any]
    then: Callable[[Any], None]
    lane: Lane | None = None
    value: Any = None
    error: Exception | None = None


class JobQueue(Protocol):
    """Where jobs are submitted; they run one after another, in the order they came."""

    def submit(self, job: Job, then: Then) -> None:
        """Run `job` later; `then` gets its value on the loop."""


class Worker(Protocol):
    """A job queue as its owner sees it."""

    @property
    def pending(self) -> int:
        """Jobs given and not yet collected."""

    @property
    def ended(self) -> int:
        """Jobs that ended, ever: another number shows that it is not stuck."""

    def submit(self, job: Job, then: Then, lane: Lane | None = None) -> None:
        """Run `job` later; `then` gets its value on the thread that collects."""

    def collect(self) -> list[Done]:
        """What has ended since the last call."""

    def close(self, timeout_s: float) -> None:
        """Finish the running job and stop."""


class ThreadWorker:
    """One thread. `wake` is called from it whenever a job has ended."""

    def __init__(self, name: str, wake: Callable[[], None]):
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._wake = wake
        self.pending = 0
        """Jobs given and not yet collected."""
        self.ended = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job, then: Then, lane: Lane | None = None) -> None:
        """Queue a job; the caller bounds how many."""
        self.pending += 1
        self._jobs.put((job, then, lane))

    def collect(self) -> list[Done]:
        """What has ended since the last call."""
        done: list[Done] = []
        while not self._done.empty():
            done.append(self._done.get_nowait())
        self.pending -= len(done)
        return done

    def close(self, timeout_s: float) -> None:
        """Let the running job end, for at most `timeout_s`."""
        self._jobs.put(_CLOSE)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not _CLOSE:
            self._done.put(run_job(*item))
            self.ended += 1
            self._wake()


class LaneWorker:
    """A job queue whose jobs are all in one lane."""

    def __init__(self, worker: Worker, lane: Lane):
        self._worker = worker
        self._lane = lane

    def submit(self, job: Job, then: Then) -> None:
        """Run `job` in this lane."""
        self._worker.submit(job, then, self._lane)


def run_job(job: Job, then: Then, lane: Lane | None) -> Done:
    """Run a job on the calling thread; what it raises is kept for the loop."""
    try:
        return Done(job, then, lane, value=job())
    except Exception as e:  # the seam between threads: the loop raises it again
        return Done(job, then, lane, error=e)
