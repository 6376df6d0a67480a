"""A worker that takes its time by a clock that the test moves: jobs run late, results come later still."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from apiary_coordinator.worker import Done, Job, Lane, Then, run_job


@dataclass(slots=True)
class _Waiting:
    job: Job
    then: Then
    lane: Lane | None
    runs_at: float


class SlowWorker:
    """Jobs run one after another in the order they came, as on the thread; the seed decides when each does.

    A job runs up to `most_s` after it was submitted and after the one before it; its result can be collected
    up to `most_s` after that. So whatever the loop does meanwhile falls before, between and after jobs.
    """

    def __init__(self, clock: Callable[[], float], *, seed: int, most_s: float = 0.3):
        self._clock = clock
        self._random = random.Random(seed)
        self._most_s = most_s
        self._waiting: deque[_Waiting] = deque()
        self._ran: deque[tuple[float, Done]] = deque()
        self._free_at = clock()
        self.ended = 0

    @property
    def pending(self) -> int:
        """Jobs not collected."""
        return len(self._waiting) + len(self._ran)

    def submit(self, job: Job, then: Then, lane: Lane | None = None) -> None:
        """Run it later."""
        self._free_at = max(self._clock(), self._free_at) + self._random.uniform(0, self._most_s)
        self._waiting.append(_Waiting(job, then, lane, self._free_at))

    def collect(self) -> list[Done]:
        """Run what is due, and give what has ended long enough ago."""
        now = self._clock()
        while self._waiting and self._waiting[0].runs_at <= now:
            self._run(self._waiting.popleft())
        done: list[Done] = []
        while self._ran and self._ran[0][0] <= now:
            done.append(self._ran.popleft()[1])
        return done

    def close(self, timeout_s: float) -> None:
        """Run what was submitted, as the thread does; nobody collects it."""
        while self._waiting:
            self._run(self._waiting.popleft())

    def _run(self, waiting: _Waiting) -> None:
        done = run_job(waiting.job, waiting.then, waiting.lane)
        self.ended += 1
        latest = self._ran[-1][0] if self._ran else 0.0
        self._ran.append((max(latest, waiting.runs_at + self._random.uniform(0, self._most_s)), done))
