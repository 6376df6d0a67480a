"""The service's side of the background tasks: one child at a time, while the node is not busy."""

import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

from apiary_edge.feature import NodeFeature, Rounds
from apiary_edge.predicting import model_files
from apiary_edge.predicting.job import BackgroundJob
from apiary_edge.samples.store import SampleStore
from apiary_edge.training.job import TrainingEvent

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 10.0
FAILED_PAUSE_S: Final = 600.0
"""After a child that failed, or could note nothing."""


class BackgroundProcess(Protocol):
    """`apiary_edge.training.process.TrainingProcess`, as far as it is used here."""

    def start(self, job: BackgroundJob) -> None:
        """Begin. Raises StoreError."""

    def collect(self) -> list[TrainingEvent]:
        """Events since the last call."""

    def stop(self) -> None:
        """End it, if it runs."""


class BackgroundTasks(NodeFeature):
    """Runs a child while no round takes the node's time; a round that begins ends it, its results stay.

    A child that takes longer than `limit_s` is ended too: it hangs, and without rounds nothing else ends it.
    """

    def __init__(
        self,
        job: BackgroundJob,
        child: BackgroundProcess,
        store: SampleStore | None,
        node: str,
        *,
        rounds: Rounds,
        limit_s: float,
    ):
        self._limit_s = limit_s
        self._began_at = 0.0
        self._job = job
        self._state_dir = job.edge.state_dir
        self._child = child
        self._store = store
        self._node = node
        self._rounds = rounds
        self._running = False
        self._look_at = 0.0
        self._stamp: tuple[object, ...] | None = None
        self._status: dict[str, Any] = {}
        self._last_failure = ""

    def tick(self, now: float) -> None:
        """Begin where there is something to do; end where there is something better. Raises StoreError."""
        for event in self._child.collect():
            self._receive(event, now)
        if self._rounds.busy:
            if self._running:
                self._child.stop()
                self._running = False
            return
        if self._running and now - self._began_at >= self._limit_s:
            self._child.stop()
            self._receive(
                TrainingEvent(kind="failed", text=f"it took longer than {self._limit_s:g} s and was ended"),
                now,
            )
        elif not self._running and now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._read_accuracies()
            if self._has_work():
                self._child.start(self._job.model_copy(update={"counted": self._rounds.samples}))
                self._running, self._began_at = True, now

    def close(self) -> None:
        """End the child."""
        self._child.stop()

    def status(self) -> Mapping[str, Any]:
        """Both accuracies, once they were compared."""
        return self._status

    def _has_work(self) -> bool:
        newest = model_files.newest(self._state_dir)
        if self._job.edge.personal.enabled and newest is not None:
            done = model_files.personal(self._state_dir)
            if model_files.stale(done, newest, self._rounds.samples):
                return True
        found = model_files.chosen(self._state_dir)
        if not self._job.suggests or self._store is None or found is None:
            return False
        return bool(self._store.awaiting_suggestion(found.digest, 1))

    def _receive(self, event: TrainingEvent, now: float) -> None:
        match event.kind:
            case "warning":
                log.info("node=%s %s", self._node, event.text)
            case "done":
                self._running = False
                self._read_accuracies()
                if self._has_work() and event.samples == 0:
                    self._look_at = now + FAILED_PAUSE_S
            case "failed" | "declined" | "crashed":
                level = logging.DEBUG if event.text == self._last_failure else logging.WARNING
                log.log(level, "node=%s spare time: %s", self._node, event.text)
                self._last_failure = event.text
                self._running = False
                self._look_at = now + FAILED_PAUSE_S

    def _read_accuracies(self) -> None:
        """Read again where the files have changed."""
        stamp = model_files.stamp(self._state_dir)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._status = {}
        newest, done = model_files.newest(self._state_dir), model_files.personal(self._state_dir)
        if self._job.edge.personal.enabled and newest and done and done.of == newest.digest:
            both = {"accuracy_global", "accuracy_personal"}
            self._status = done.model_dump(include=both, exclude_none=True)
