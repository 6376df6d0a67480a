"""A worker without a thread: a test that runs twice sees the same order twice."""

from __future__ import annotations

from apiary_coordinator.worker import Done, Job, Lane, Then, run_job


class InlineWorker:
    """Runs each job at once."""

    def __init__(self) -> None:
        self._done: list[Done] = []
        self.ended = 0

    @property
    def pending(self) -> int:
        """Jobs not collected."""
        return len(self._done)

    def submit(self, job: Job, then: Then, lane: Lane | None = None) -> None:
        """Run it now."""
        self._done.append(run_job(job, then, lane))
        self.ended += 1

    def collect(self) -> list[Done]:
        """What was run."""
        done, self._done = self._done, []
        return done

    def close(self, timeout_s: float) -> None:
        """Nothing to stop."""
