"""Watches the worker's thread: the loop, which feeds the watchdog, does not stop when the worker does."""

import logging
from typing import Final

from apiary.errors import ApiaryError
from apiary.settings import PublishSettings
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.worker import Worker

log = logging.getLogger(__name__)

WARN_S: Final = 15 * 60.0
"""One job may take this long before it is logged; an export, a run's longest, ends after ten minutes."""
GIVE_UP_S: Final = 2 * 3600.0
"""And this long, and what publishing may, before the coordinator ends, to be started again."""


class Watchdog(CoordinatorFeature):
    """`busy_s` is how long the worker has been at the job that it is at, 0 where it is at none."""

    def __init__(self, worker: Worker, publish: PublishSettings):
        self._worker = worker
        # Publishing after a run may take this long, all publishers together.
        self._limit_s = GIVE_UP_S + publish.timeout_s * len(publish.after_run)
        self._ended = -1
        self._since = 0.0
        self._warn_at = 0.0
        self.busy_s = 0.0

    def tick(self, now: float) -> None:
        """Raises ApiaryError where the worker is stuck: whoever starts us again has the run go on."""
        worker = self._worker
        if not worker.pending or worker.ended != self._ended:
            self._ended, self._since, self._warn_at = worker.ended, now, now + WARN_S
        self.busy_s = now - self._since
        if self.busy_s >= self._limit_s:
            raise ApiaryError(
                f"the worker has been at one job for {self.busy_s / 3600:.1f} hours, and no round can be "
                "closed meanwhile: ending, to be started again; the run goes on where it was. Does a disk or "
                "a network folder hang?"
            )
        if now >= self._warn_at:
            self._warn_at = now + WARN_S
            log.error(
                "the worker has been at one job for %.0f minutes: no round can be closed meanwhile; at %.1f "
                "hours the coordinator ends, to be started again",
                self.busy_s / 60,
                self._limit_s / 3600,
            )
