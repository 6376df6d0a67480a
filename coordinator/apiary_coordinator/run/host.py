"""Hosts at most one run: begins it, gives it its turns and the worker's results, and lets it end or fail."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, NoReturn

from apiary.errors import ApiaryError, StoreError, WireError
from apiary.files import clear_partial
from apiary.wire.messages import CoordinatorStatus
from apiary_coordinator.fleet.demands import Demands
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.resources import Resources
from apiary_coordinator.round.runner import RoundRunner
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.messages import status
from apiary_coordinator.run.run import Run
from apiary_coordinator.worker import Done, Lane, LaneWorker, Worker

log = logging.getLogger(__name__)

_RETRY_S: Final = 5.0


class RunHost:
    """Called on the loop. Where it is to `stay`, a run that fails ends alone; otherwise its error is raised.

    `ended` is called with each run that is over where it is to stay; otherwise that run stays `current`.
    """

    def __init__(
        self,
        resources: Resources,
        worker: Worker,
        roster: Roster,
        epoch: str,
        *,
        stay: bool,
        after_run: Callable[[Path], object],
        ended: Callable[[Run], None],
    ):
        self.current: Run | None = None
        self.epoch = epoch
        self.upcoming = Demands()
        """What the next run by the coordinator's own settings needs of a node."""
        self.nodes_before = 0
        """How many nodes were known before this start of the coordinator."""
        self._resources = resources
        self._worker = worker
        self._roster = roster
        self._stay = stay
        self._after_run = after_run
        self._ended = ended
        self._retries: list[tuple[float, Callable[[], None], Lane | None]] = []

    @property
    def active(self) -> Run | None:
        """The run that is under way, if any."""
        return self.current if self.current is not None and self.current.stage != "done" else None

    @property
    def runner(self) -> RoundRunner | None:
        """The round that is under way, if any."""
        return self.current.runner if self.current is not None else None

    @property
    def over(self) -> bool:
        """Whether the one run is over, where the host is not to stay."""
        return not self._stay and self.current is not None and self.current.stage == "done"

    @property
    def demands(self) -> Demands:
        """What the round that is open needs of a node, or the next one."""
        if self.active is None:
            return self.upcoming
        demands = self.active.demands
        return demands if demands.labels else replace(demands, labels=self.upcoming.labels)

    def status(self, state: Literal["online", "offline"]) -> CoordinatorStatus:
        """The coordinator's status."""
        run = self.current.name if self.current is not None else None
        return status(state, self.epoch, run, max(len(self._roster), self.nodes_before))

    def publish_status(self) -> None:
        """Publish that the coordinator is online, and which run it has."""
        self._resources.outgoing.outlet.send(self.status("online"))

    def begin(self, assignment: Assignment) -> None:
        """Start a run, or resume one. Only where none is under way."""
        assert self.active is None  # noqa: S101 - a bug of the queue
        lane = Lane()
        self.current = Run(
            assignment,
            replace(self._resources, worker=LaneWorker(self._worker, lane)),
            lane,
            roster=self._roster,
            epoch=self.epoch,
            after_run=self._after_run,
        )
        self._must(partial(self._start, self.current), lane)

    def collect(self, now: float) -> None:
        """Take what the worker has done, and try again what the disk refused."""
        for done in self._worker.collect():
            self._take(done)
        due = [(act, lane) for at, act, lane in self._retries if at <= now]
        self._retries = [entry for entry in self._retries if entry[0] > now]
        for act, lane in due:
            if lane is None or not lane.left:
                self._must(act, lane)

    def tick(self) -> None:
        """Time has passed. Raises WireError, StoreError; where it does not stay, what the run failed with."""
        run = self.current
        if run is None:
            return
        try:
            run.tick()
        except (WireError, StoreError):
            raise
        except ApiaryError as e:
            self._failed(run.lane, e)
        if run.stage == "done" and self._stay:
            self.current = None
            self.publish_status()
            self._ended(run)

    def close(self) -> None:
        """Stop the worker; an unfinished run is resumed at the next start."""
        self._worker.close(1.0 if self.runner is None else 5.0)
        if self.runner is not None:
            self.runner.collector.close(remove=False)

    def _start(self, run: Run) -> None:
        """Raises StoreError, and is tried again then."""
        clear_partial(run.history.folder, below=True)
        self.publish_status()
        run.start()

    def _take(self, done: Done) -> None:
        """One result of the worker. What goes wrong with a run's jobs is the end of the run."""
        if done.lane is not None and done.lane.left:
            log.debug("dropped, its run is over: %s", done.error or "done")
        elif isinstance(done.error, StoreError):
            self._later(done.error, partial(self._worker.submit, done.job, done.then, done.lane), done.lane)
        elif done.error is not None:
            self._failed(done.lane, done.error)
        else:
            self._must(partial(done.then, done.value), done.lane)

    def _must(self, act: Callable[[], None], lane: Lane | None) -> None:
        """Do something that cannot be left out: where the disk refuses, again after a pause."""
        try:
            act()
        except StoreError as e:
            self._later(e, act, lane)
        except ApiaryError as e:
            self._failed(lane, e)

    def _later(self, error: StoreError, act: Callable[[], None], lane: Lane | None) -> None:
        log.error("%s; trying again in %.0f s", error, _RETRY_S)
        self._retries.append((self._resources.clocks.monotonic() + _RETRY_S, act, lane))

    def _failed(self, lane: Lane | None, error: Exception) -> None:
        run = self.current
        if not isinstance(error, ApiaryError):
            raise error
        if lane is None:
            log.error("%s", error)
        elif run is None or lane is not run.lane:
            raise error
        elif not self._stay:
            self._leave(run, error)
        else:
            log.error("run=%s failed: %s", run.name, error)
            self._must(partial(run.give_up, "failed", str(error)), None)

    def _leave(self, run: Run, error: ApiaryError) -> NoReturn:
        """Raise what the one run failed with. One that has no round yet ends, so that the next start begins
        another with the settings it is given; of one that has, the way out is logged.
        """
        journal = self._resources.storage.journal
        row = journal.run(run.name)
        if row is None or row.state != "active" or isinstance(error, StoreError):
            raise error
        if not journal.rounds(run.name):
            journal.end_run(run.name, "failed", str(error)[:500])
            raise error
        raise type(error)(
            f"{error}. Run {run.name} is unfinished: the same command tries to go on with it; "
            "to leave it behind and begin another: apiary coordinator --new"
        ) from error
