"""The coordinator: one loop that moves messages between the bus and the parts that decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from apiary.blobs import BlobStore
from apiary.bus.bus import BrokerLimits, Bus, Will
from apiary.bus.flow import ChunkFlow
from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Tap, no_tap
from apiary.errors import ApiaryError, BusError, StoreError
from apiary.files import clear_partial
from apiary.identity.gate import OPEN, MessageGate
from apiary.service import Service
from apiary.settings import Settings
from apiary.wire.chunks import CHUNK_BYTES, ENVELOPE_BYTES
from apiary.wire.topics import TopicKind, Topics
from apiary_coordinator.feature import CoordinatorFeature, Desk, Features, no_features
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.inbox import KINDS, Inbox
from apiary_coordinator.journal import Journal
from apiary_coordinator.run.assignment import Assignment, Means
from apiary_coordinator.run.messages import status
from apiary_coordinator.run.run import Run
from apiary_coordinator.updates.model_server import ModelServer
from apiary_coordinator.worker import Done, Lane, Worker

log = logging.getLogger(__name__)

_RETRY_S: Final = 5.0


class Coordinator(Service[CoordinatorFeature]):
    """One federation's server. It has a run, or, where it is to `stay`, none until a feature begins one.

    `step` is one turn of the loop. `clock` is monotonic, `wall` seconds since 1970; both, like the bus and
    the worker, come from outside. `ended` is called with each run that ends where the coordinator stays.
    """

    kinds = KINDS

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        journal: Journal,
        blobs: BlobStore,
        worker: Worker,
        clock: Callable[[], float],
        wall: Callable[[], float],
        epoch: str,
        stay: bool = False,
        tap: Tap = no_tap,
        inspect: Callable[[Path], Any] = lambda folder: None,
        features: Features = no_features,
        ended: Callable[[Run], None] = lambda course: None,
        gate: MessageGate = OPEN,
    ):
        super().__init__(bus, settings.topics, clock=clock, gate=gate, tap=tap)
        self.settings = settings
        self.course: Run | None = None
        self.roster = Roster()
        self._journal = journal
        self._worker = worker
        self._wall = wall
        self._epoch = epoch
        self._flow = ChunkFlow()
        self._down = ModelServer(self._topics, blobs, self._flow, settings.coordinator.gather_s)
        self._window = settings.broker.inflight
        self._again: list[tuple[float, Callable[[], None], Lane | None]] = []
        self._stay = stay
        self._ended = ended
        self._inspect = inspect
        self._means = Means(
            journal,
            blobs,
            worker,
            bus,
            self._outlet,
            self._flow,
            self._down,
            self.roster,
            clock,
            wall,
            self._finished,
        )
        desk = Desk(
            settings,
            bus,
            self._topics,
            self._outlet,
            journal,
            blobs,
            self._down,
            self.roster,
            worker,
            clock,
            wall,
            epoch,
            lambda: self.course,
            self.begin,
        )
        self._reception = Inbox(desk, self._complaints, tap=tap, here=self._here)
        self.features = features(desk)

    def start(self) -> None:
        """Subscribe and say that we are here."""
        clear_partial(self.settings.coordinator.state_dir, below=True)
        self._start(self._clock())
        self._here()

    def begin(self, assignment: Assignment) -> None:
        """Start a run, or take one up. Only where none is under way."""
        assert self.course is None or self.course.stage == "done"  # noqa: S101 - a feature's bug
        self.course = Run(self._means, assignment, epoch=self._epoch)
        self._must(partial(self._begin, self.course), self.course.lane)

    @property
    def over(self) -> bool:
        """Whether the run is over, where the coordinator does not stay."""
        return not self._stay and self.course is not None and self.course.stage == "done"

    def close(self) -> None:
        """Say goodbye; an unfinished run goes on at the next start."""
        if self.course is not None and self.course.live is not None:
            self._worker.close(5.0)
            self.course.live.collection.close(remove=False)
        else:
            self._worker.close(1.0)
        self._close(status("offline", self._epoch, self.course.run if self.course else None))

    def _disk_failed(self, error: StoreError) -> None:
        # Each time: what it holds up is tried again after a pause, and an operator waits for it.
        log.error("%s", error)

    def _wait_s(self, timeout_s: float) -> float:
        due = self._down.next_due()
        return timeout_s if due is None else min(timeout_s, max(0.0, due - self._clock()))

    def _work(self, now: float) -> None:
        for done in self._worker.collect():
            self._take(done)
        self._retry(now)
        if self.course is not None:
            self._turn(self.course)

    def _flush(self, now: float) -> None:
        self._guarded(self._outlet.renew)
        self._down.due(now)
        self._guarded(partial(self._flow.pump, self._bus, self._window))

    def connected(self, limits: BrokerLimits) -> None:
        """The broker accepted us: keep to its limits, say again what it may have forgotten."""
        self._check_limits(limits.max_packet_bytes)
        if limits.receive_maximum:
            self._window = min(self._window, limits.receive_maximum)
        super().connected(limits)

    def _begin(self, course: Run) -> None:
        """Raises StoreError, and is tried again then."""
        clear_partial(course.record.folder, below=True)
        self._here()
        course.start()

    def _turn(self, course: Run) -> None:
        try:
            self._guarded(course.tick)
        except ApiaryError as e:
            self._failed(course.lane, e)
        if course.stage == "done" and self._stay:
            self.course = None
            self._here()
            self._ended(course)

    def _take(self, done: Done) -> None:
        """What the worker made. What goes wrong with a run's jobs is the end of the run."""
        if done.lane is not None and done.lane.left:
            log.debug("nobody waits for this any more: %s", done.error or "done")
        elif isinstance(done.error, StoreError):
            self._later(done.error, partial(self._worker.submit, done.job, done.then, done.lane), done.lane)
        elif done.error is not None:
            self._failed(done.lane, done.error)
        else:
            self._must(partial(done.then, done.value), done.lane)

    def _finished(self, folder: Path) -> None:
        """What follows a run, on the worker's thread."""
        self._inspect(folder)
        for feature in self.features:
            feature.finished(folder)

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
        self._again.append((self._clock() + _RETRY_S, act, lane))

    def _retry(self, now: float) -> None:
        due = [(act, lane) for at, act, lane in self._again if at <= now]
        self._again = [entry for entry in self._again if entry[0] > now]
        for act, lane in due:
            if lane is None or not lane.left:
                self._must(act, lane)

    def _failed(self, lane: Lane | None, error: Exception) -> None:
        course = self.course
        if not isinstance(error, ApiaryError):
            raise error
        if lane is None:
            log.error("%s", error)
        elif course is None or lane is not course.lane or not self._stay:
            raise error
        else:
            log.error("run=%s failed: %s", course.run, error)
            self._must(partial(course.fail, str(error)), None)

    def _received(self, delivery: Delivery) -> None:
        self._reception.received(delivery)

    # -- small parts -----------------------------------------------------------------------------------

    def _here(self) -> None:
        self._outlet.send(status("online", self._epoch, self.course.run if self.course else None))

    def _check_limits(self, max_packet_bytes: int) -> None:
        need = CHUNK_BYTES + ENVELOPE_BYTES + 256
        if 0 < max_packet_bytes < need:
            raise BusError(
                f"the broker takes packets of at most {max_packet_bytes} bytes, chunks need {need}: "
                "raise max_packet_size in mosquitto.conf"
            )


def will(topics: Topics, epoch: str) -> Will:
    """What the broker says when the coordinator vanishes."""
    return Will(topics.build(TopicKind.COORDINATOR_STATUS), status("offline", epoch, None).encode())
