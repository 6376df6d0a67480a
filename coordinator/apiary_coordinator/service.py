"""The coordinator: one loop that moves messages between the bus and the parts that decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from apiary import __version__
from apiary.blobs import BlobStore
from apiary.bus.bus import Bus, Connected, Disconnected, Limits, Received, Refused, Will
from apiary.bus.flow import ChunkFlow
from apiary.bus.outlet import Outlet, Tap, no_tap
from apiary.complaints import Complaints
from apiary.errors import BusError, StoreError, WireError
from apiary.files import clear_partial
from apiary.settings import Settings
from apiary.wire import NodeId
from apiary.wire.chunks import CHUNK_BYTES, ENVELOPE_BYTES
from apiary.wire.messages import Ask, CoordinatorStatus, NodeStatus, Offer, Progress, Want
from apiary.wire.topics import Kind, Topic, Topics
from apiary_coordinator.announcements import status
from apiary_coordinator.collection import receipt
from apiary_coordinator.course import Course, Means
from apiary_coordinator.downlink import Downlink
from apiary_coordinator.feature import Desk, Features, no_features
from apiary_coordinator.roster import Roster
from apiary_coordinator.store import Journal
from apiary_coordinator.worker import Done, Worker
from apiary_coordinator.workshop import Artefacts, Workshop

log = logging.getLogger(__name__)

_TAKEN: Final = (
    Kind.NODE_STATUS,
    Kind.NODE_ASK,
    Kind.NODE_WANT,
    Kind.NODE_OFFER,
    Kind.NODE_PROGRESS,
    Kind.CHUNK_UP,
    Kind.COORDINATOR_STATUS,
)
_RETRY_S: Final = 5.0
_CLOCK_OFF_S: Final = 3600.0


class Coordinator:
    """One run of one federation. `step` is one turn of the loop; `run` turns until the run is over.

    `clock` is monotonic, `wall` seconds since 1970; both, like the bus and the worker, come from outside.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        journal: Journal,
        blobs: BlobStore,
        workshop: Workshop,
        worker: Worker,
        clock: Callable[[], float],
        wall: Callable[[], float],
        epoch: str,
        run: str,
        created: float,
        tap: Tap = no_tap,
        inspect: Callable[[Path], Any] = lambda folder: None,
        features: Features = no_features,
    ):
        self.settings = settings
        self.roster = Roster()
        self._topics: Topics = settings.topics
        self._bus = bus
        self._journal = journal
        self._worker = worker
        self._clock = clock
        self._wall = wall
        self._epoch = epoch
        self._tap = tap
        self._outlet = Outlet(bus, self._topics, tap)
        self._flow = ChunkFlow()
        self._down = Downlink(self._topics, blobs, self._flow, settings.coordinator.gather_s)
        self._complaints = Complaints(log)
        self._window = settings.broker.inflight
        self._again: list[tuple[float, Callable[[], None]]] = []
        means = Means(
            settings,
            journal,
            blobs,
            workshop,
            worker,
            bus,
            self._outlet,
            self._flow,
            self._down,
            self.roster,
            clock,
            wall,
            inspect,
        )
        self.course = Course(means, run=run, created=created, epoch=epoch)
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
        )
        self._features = features(desk)

    def start(self, artefacts: Artefacts | None) -> None:
        """Subscribe and begin to build; a resumed run's `artefacts` are used where they are still whole."""
        for folder in (self.settings.coordinator.state_dir, self.course.record.folder):
            clear_partial(folder, below=True)
        kinds = {*_TAKEN, *(kind for feature in self._features for kind in feature.kinds)}
        for kind in sorted(kinds, key=lambda kind: kind.name):
            self._bus.subscribe(self._topics.pattern(kind))
        for feature in self._features:
            feature.start(self._clock())
        self._outlet.send(status("online", self._epoch, self.course.run))
        self.course.start(artefacts)

    def run(self, should_stop: Callable[[], bool], turned: Callable[[], None] = lambda: None) -> None:
        """Turn until the run is over or `should_stop`; `turned` is called after each turn.

        Raises what the run failed with.
        """
        while self.course.stage != "done" and not should_stop():
            self.step(0.5)
            turned()

    def close(self) -> None:
        """Say goodbye; an unfinished run goes on at the next start."""
        if self.course.live is not None:
            self._worker.close(5.0)
            self.course.live.collection.close(remove=False)
        else:
            self._worker.close(1.0)
        for feature in self._features:
            feature.close()
        self._outlet.send(status("offline", self._epoch, self.course.run))
        # A last moment for the broker to take it; nothing depends on it.
        for _ in range(20):
            if self._bus.backlog == 0 or not self._bus.connected:
                break
            self._bus.poll(0.05)
        self._bus.close()

    def step(self, timeout_s: float) -> None:
        """One turn: wait for the bus at most `timeout_s`, take what came, do what is due."""
        due = self._down.next_due()
        if due is not None:
            timeout_s = min(timeout_s, max(0.0, due - self._clock()))
        for event in self._bus.poll(timeout_s):
            match event:
                case Received():
                    self._received(event)
                case Connected(limits):
                    self.connected(limits)
                case Disconnected(error, retry_s):
                    log.warning("%s; next attempt in %.0f s", error, retry_s)
                case Refused(topic, reason):
                    log.warning("the broker refused topic=%s reason=%s", topic, reason)
        for done in self._worker.collect():
            self._take(done)
        now = self._clock()
        self._retry(now)
        self._guarded("", self.course.tick)
        for feature in self._features:
            self._guarded("", partial(feature.tick, now))
        self._down.due(now)
        self._guarded("", partial(self._flow.pump, self._bus, self._window))

    def connected(self, limits: Limits) -> None:
        """The broker accepted us: keep to its limits, say again what it may have forgotten."""
        self._check_limits(limits.max_packet_bytes)
        if limits.receive_maximum:
            self._window = min(self._window, limits.receive_maximum)
        log.info("broker connected protocol=%s", limits.protocol)
        self._outlet.restore()
        for feature in self._features:
            self._guarded("", feature.connected)

    def _take(self, done: Done) -> None:
        if isinstance(done.error, StoreError):
            log.error("%s; trying again in %.0f s", done.error, _RETRY_S)
            self._again.append((self._clock() + _RETRY_S, partial(self._worker.submit, done.job, done.then)))
        elif done.error is not None:
            raise done.error
        else:
            self._must(partial(done.then, done.value))

    def _must(self, act: Callable[[], None]) -> None:
        """Do something that cannot be left out: where the disk refuses, again after a pause."""
        try:
            act()
        except StoreError as e:
            log.error("%s; trying again in %.0f s", e, _RETRY_S)
            self._again.append((self._clock() + _RETRY_S, act))

    def _retry(self, now: float) -> None:
        due = [act for at, act in self._again if at <= now]
        self._again = [(at, act) for at, act in self._again if at > now]
        for act in due:
            self._must(act)

    # -- what comes in ---------------------------------------------------------------------------------

    def _received(self, event: Received) -> None:
        try:
            topic = self._topics.parse(event.topic)
        except WireError as e:
            log.debug("%s", e)
            return
        self._guarded(topic.node or "", partial(self._dispatch, topic, event))
        for feature in self._features:
            if topic.kind in feature.kinds:
                self._guarded(topic.node or "", partial(feature.received, topic, event))

    def _dispatch(self, topic: Topic, event: Received) -> None:
        now, node = self._clock(), topic.node
        if topic.kind is Kind.COORDINATOR_STATUS:
            self._other_coordinator(event)
            return
        if node is None:
            return
        who = f"node {node}"
        match topic.kind:
            case Kind.CHUNK_UP:
                if self.course.live is not None and topic.digest is not None and topic.index is not None:
                    self.course.live.collection.chunk(node, topic.digest, topic.index, event.payload, now)
            case Kind.NODE_STATUS:
                if event.payload:
                    self._node_status(node, NodeStatus.decode(event.payload, who=who), now)
            case Kind.NODE_OFFER:
                self._offer(node, Offer.decode(event.payload, who=who), now)
            case Kind.NODE_WANT:
                self._down.want(node, Want.decode(event.payload, who=who), now)
            case Kind.NODE_ASK:
                self._asked(node, Ask.decode(event.payload, who=who))
            case Kind.NODE_PROGRESS:
                self._tap(topic.kind, node, Progress.decode(event.payload, who=who))
            case _:
                pass

    def _node_status(self, node: NodeId, status: NodeStatus, now: float) -> None:
        self._tap(Kind.NODE_STATUS, node, status)
        before = self.roster.update(node, status, now)
        if status.version not in ("", __version__) and status.state != "lost":
            self._complaints.once(
                f"version {node} {status.version}",
                f"node {node} runs version {status.version}, the coordinator {__version__}",
            )
        if before is None or before.status.state == "lost":
            self.course.newcomer(now)
        if before is None or before.status.state != status.state:
            log.debug("node=%s state=%s why=%s", node, status.state, status.why)
        if self.course.live is not None:
            self.course.live.node_status(node, status, self.roster, now)

    def _offer(self, node: NodeId, offer: Offer, now: float) -> None:
        self._tap(Kind.NODE_OFFER, node, offer)
        if self.course.stage == "building":
            return
        live = self.course.live
        if live is not None and (offer.run, offer.round) == (self.course.run, live.round.number):
            live.collection.offered(node, offer, now)
            return
        if self._journal.counted(offer.run, offer.round, node):
            # Its first receipt was lost on the way.
            self._outlet.send(receipt(offer, "duplicate"), node)
        else:
            why = f"round {offer.round} of run {offer.run} is over"
            self._outlet.send(receipt(offer, "closed", why), node)

    def _asked(self, node: NodeId, ask: Ask) -> None:
        self._tap(Kind.NODE_ASK, node, ask)
        off = abs(ask.clock - self._wall()) if ask.clock is not None else 0.0
        if off > _CLOCK_OFF_S:
            self._complaints.once(
                f"clock {node}",
                f"node {node}: its clock is {off / 86400:.1f} days off; rounds do not mind, but TLS and logs "
                "do: check its time synchronisation (timedatectl)",
            )
        self._outlet.send(self.course.notice(node), node)

    def _other_coordinator(self, event: Received) -> None:
        other = CoordinatorStatus.decode(event.payload, who="another coordinator")
        if not event.retained and other.state == "online" and other.epoch != self._epoch:
            log.error(
                "another coordinator (epoch=%s) serves the federation %r on this broker: stop one of them, "
                "or give one another `federation`",
                other.epoch,
                self.settings.federation,
            )
        elif not event.retained and other.state == "offline" and other.epoch != self._epoch:
            self._outlet.send(status("online", self._epoch, self.course.run))

    # -- small parts -----------------------------------------------------------------------------------

    def _check_limits(self, max_packet_bytes: int) -> None:
        need = CHUNK_BYTES + ENVELOPE_BYTES + 256
        if 0 < max_packet_bytes < need:
            raise BusError(
                f"the broker takes packets of at most {max_packet_bytes} bytes, chunks need {need}: "
                "raise max_packet_size in mosquitto.conf"
            )

    def _guarded(self, who: str, act: Callable[[], object]) -> None:
        """Do something for a peer: its faults are logged and cost nobody else anything."""
        try:
            act()
        except WireError as e:
            self._complaints.about(who, e)
        except StoreError as e:
            log.error("%s", e)


def will(topics: Topics, epoch: str) -> Will:
    """What the broker says when the coordinator vanishes."""
    return Will(topics.build(Kind.COORDINATOR_STATUS), status("offline", epoch, None).encode())
