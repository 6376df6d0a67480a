"""The edge service: one loop that moves messages between the bus and the session, and performs commands."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from functools import partial
from typing import Final, assert_never

from apiary import __version__
from apiary.blobs import BlobStore
from apiary.bus.bus import Bus, Connected, Disconnected, Limits, Received, Refused, Will
from apiary.bus.flow import ChunkFlow
from apiary.bus.outlet import Outlet, Tap, no_tap
from apiary.complaints import Complaints
from apiary.errors import DataError, StoreError, WireError
from apiary.files import clear_partial
from apiary.settings import Settings
from apiary.wire import Digest, NodeId
from apiary.wire.messages import (
    Announcement,
    Ask,
    BlobRef,
    CoordinatorStatus,
    Grant,
    NodeState,
    NodeStatus,
    Notice,
    Offer,
    Progress,
    Receipt,
)
from apiary.wire.topics import Kind, Topic, Topics
from apiary_edge import census
from apiary_edge import session as table
from apiary_edge.capture_job import CaptureTold, store_dir
from apiary_edge.capturing import CaptureProcess
from apiary_edge.downloads import Downloads
from apiary_edge.job import Told, TrainJob
from apiary_edge.outbox import Outbox
from apiary_edge.samples.store import SampleStore
from apiary_edge.session import Session, State
from apiary_edge.training import Training, scratch

log = logging.getLogger(__name__)

RECEIVE_MAXIMUM: Final = 2
"""Messages that the broker may have on their way to a node. It copies each for its receiver: with its own
limit of 100 the models of 1000 nodes that were slow to read took 475 MB of it (measured), with a model of
14 MB it could be 12 GB. Two chunks in a round trip are 4.8 Mbit/s at 400 ms."""
MAX_CRASHES: Final = 3
"""A training child that dies of itself is started again this often in a round.

One that was killed from outside (an operator, the kernel short of memory) is started again for as long as
the round lasts, after pauses that double up to `_CRASH_PAUSE_MAX_S`.
"""
_TRAIN_SHARE: Final = 0.7
"""Of a round's time, where the plan takes partial work."""
_CRASH_PAUSE_S: Final = 1.0
_CRASH_PAUSE_MAX_S: Final = 60.0
_COUNT_EVERY_S: Final = 60.0
_TWIN_EVERY_S: Final = 60.0
_PROGRESS_EVERY_S: Final = 2.0
_TRUST_S: Final = 300.0
"""For so long after a round was heard of, earlier ones of its run are not believed. Later they are: a
coordinator whose journal was restored from a backup begins at an earlier round."""
_STATES: Final[dict[State, NodeState]] = {
    State.IDLE: "ready",
    State.FETCHING: "training",
    State.TRAINING: "training",
    State.SENDING: "sending",
}


class Edge:
    """One node. `step` is one turn of its loop; `clock` is monotonic, `wall` seconds since 1970."""

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        blobs: BlobStore,
        outbox: Outbox,
        training: Training,
        clock: Callable[[], float],
        wall: Callable[[], float],
        instance: str,
        runtimes: list[str],
        memory_mb: int | None = None,
        tap: Tap = no_tap,
        store: SampleStore | None = None,
        capture: CaptureProcess | None = None,
    ):
        edge = settings.edge
        self.node = NodeId(edge.node_id)
        self.session = Session(self.node, edge.upload_idle_s, done=outbox.done())
        self.rounds_done = 0
        self._settings = settings
        self._topics: Topics = settings.topics
        self._bus = bus
        self._blobs = blobs
        self._outbox = outbox
        self._training = training
        self._clock = clock
        self._wall = wall
        self._instance = instance
        self._runtimes = runtimes
        self._store = store
        self._capture = capture
        self._memory_mb = memory_mb
        self._tap = tap
        self._outlet = Outlet(bus, self._topics, tap)
        self._flow = ChunkFlow()
        self._complaints = Complaints(log)
        self._downloads = Downloads(
            self.node, bus=bus, topics=self._topics, outlet=self._outlet, blobs=blobs, idle_s=edge.want_idle_s
        )
        self._labels: dict[str, int] = {}
        self._trouble: str | None = None
        self._said: tuple[object, ...] | None = None
        self._counted_at = 0.0
        self._refreshed_at = clock()
        self._progress_at = 0.0
        self._crashes = 0
        self._kills = 0
        self._connects = 0
        self._twin_said_at = -math.inf
        self._train_at: float | None = None
        self._train_began_at = 0.0
        self._declined: tuple[str, int, str] | None = None
        self._coordinator = ""
        self._newest: tuple[str, int, float] | None = None
        self._window = settings.broker.inflight
        # Spread by name, so that a fleet that was started together does not speak together.
        self._refresh_s = edge.refresh_s * (1 + sum(edge.node_id.encode()) % 20 / 100)

    def start(self) -> None:
        """Count the pictures, take up what the outbox holds, subscribe. Raises DataError without pictures."""
        now = self._clock()
        clear_partial(self._settings.edge.state_dir, below=True)
        if self._store is not None:
            self._store.reconcile()
        self._labels = census.count(self._settings.edge.data_dir, self._store)
        self._counted_at = now
        if len(self._labels) == 1:
            log.warning(
                "node=%s all pictures have the label %r: this node trains, but teaches one class only",
                self.node,
                next(iter(self._labels)),
            )
        for kind in (Kind.NODE_NOTICE, Kind.NODE_GRANT, Kind.NODE_RECEIPT, Kind.NODE_STATUS):
            self._bus.subscribe(self._topics.pattern(kind, node=self.node))
        self._bus.subscribe(self._topics.pattern(Kind.ROUND_CURRENT))
        self._bus.subscribe(self._topics.pattern(Kind.COORDINATOR_STATUS))
        waiting = self._outbox.waiting()
        if waiting:
            log.info("node=%s round=%d the outbox holds an update; sending it", self.node, waiting[-1].round)
            self.session, commands = table.resume(self.session, waiting[-1], now)
            self._perform(commands)
        self._status()

    def run(self, should_stop: Callable[[], bool], turned: Callable[[], None] = lambda: None) -> None:
        """Turn until `should_stop`; `turned` is called after each turn."""
        while not should_stop():
            self.step(0.5)
            turned()

    def close(self) -> None:
        """End the children and say goodbye; what the outbox holds is sent after the next start."""
        self._training.stop()
        if self._capture is not None:
            self._capture.stop()
        self._downloads.abandon()
        self._outlet.send(lost(self._instance, "stopped"), self.node)
        for _ in range(20):
            if self._bus.backlog == 0 or not self._bus.connected:
                break
            self._bus.poll(0.05)
        self._bus.close()

    def step(self, timeout_s: float) -> None:
        """One turn: wait for the bus at most `timeout_s`, take what came, do what is due."""
        for event in self._bus.poll(timeout_s):
            match event:
                case Received():
                    self._guarded(partial(self._received, event))
                case Connected(limits):
                    self.connected(limits)
                case Disconnected(error, retry_s):
                    log.warning("%s; next attempt in %.0f s", error, retry_s)
                    self._flow.clear()
                case Refused(topic, reason):
                    log.warning("the broker refused topic=%s reason=%s", topic, reason)
        for told in self._training.collect():
            self._guarded(partial(self._told, told))
        now = self._clock()
        self._downloads.tick(now)
        limit = self._settings.edge.train_timeout_s
        if self.session.state is State.TRAINING and now - self._train_began_at >= limit:
            why = f"training took longer than {limit:g} s (edge.train_timeout_s)"
            self._guarded(partial(self._handle, table.TrainingFailed(why)))
        self._guarded(partial(self._handle, table.Tick()))
        if self._train_at is not None and now >= self._train_at and self.session.round is not None:
            self._guarded(partial(self._train, self.session.round))
        if self._capture is not None:
            self._capture.tick(now)
            for frame in self._capture.collect():
                self._captured(frame)
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._count(now)
        if now - self._refreshed_at >= self._refresh_s:
            self._refresh(now)
        self._guarded(partial(self._flow.pump, self._bus, self._window))

    # -- what comes in ---------------------------------------------------------------------------------

    def _received(self, event: Received) -> None:
        topic = self._topics.parse(event.topic)
        who = "the coordinator"
        match topic.kind:
            case Kind.CHUNK_DOWN:
                self._chunk(topic, event.payload)
            case Kind.ROUND_CURRENT:
                told = Announcement.decode(event.payload, who=who)
                self._tap(topic.kind, None, told)
                self._announced(told, None)
            case Kind.NODE_NOTICE:
                notice = Notice.decode(event.payload, who=who)
                self._tap(topic.kind, self.node, notice)
                if notice.announcement is None:
                    self._handle(table.NothingOpen())
                else:
                    self._announced(notice.announcement, notice.invited)
            case Kind.NODE_GRANT:
                grant = Grant.decode(event.payload, who=who)
                self._handle(table.Granted(Digest(grant.digest), grant.missing))
            case Kind.NODE_RECEIPT:
                receipt = Receipt.decode(event.payload, who=who)
                self._tap(topic.kind, self.node, receipt)
                self._handle(
                    table.Receipted(Digest(receipt.digest), receipt.state, receipt.why, receipt.missing or [])
                )
            case Kind.COORDINATOR_STATUS:
                self._coordinator_status(CoordinatorStatus.decode(event.payload, who=who))
            case Kind.NODE_STATUS:
                self._twin(event)
            case _:
                pass

    def _announced(self, told: Announcement, invited: bool | None) -> None:
        now = self._clock()
        if self._outdated(told, now):
            log.debug("node=%s round=%d an announcement that is out of date", self.node, told.round)
            return
        self._newest = (told.run, told.round, now)
        self._coordinator = told.epoch
        refs = [ref for ref in (told.manifest, told.trainer, told.base, told.model) if ref is not None]
        if told.state not in table.OPEN_STATES or self.session.state is State.SENDING:
            refs = []  # nothing begins with this one: the disk need not be asked
        has = frozenset(Digest(r.digest) for r in refs if self._blobs.verify(Digest(r.digest)))
        self._handle(table.Announced(told, invited), has)

    def _outdated(self, told: Announcement, now: float) -> bool:
        """Whether it is of an earlier round than this run's present one: held back, or repeated by somebody.

        Epochs do not help here, they have no order; a node that has just started knows none of them.
        """
        if self._newest is None:
            return False
        run, number, heard_at = self._newest
        return told.run == run and told.round < number and now - heard_at < _TRUST_S

    def _chunk(self, topic: Topic, payload: bytes) -> None:
        if topic.digest is None or topic.index is None:
            return
        whole = self._downloads.chunk(topic.digest, topic.index, payload, self._clock())
        if whole is not None:
            self._handle(table.Fetched(whole))

    def _coordinator_status(self, status: CoordinatorStatus) -> None:
        if status.state == "online" and status.epoch != self._coordinator:
            self._coordinator = status.epoch
            self.renew()

    def _twin(self, event: Received) -> None:
        """Our own status topic: what another process with our id said there, or our own will, too late.

        At the first connect what is retained there may be ours from before a restart; later it is not.
        """
        status = NodeStatus.decode(event.payload, who=f"node {self.node}")
        if status.state == "lost":
            self._outlet.restore()
        ours = status.session == self._instance or (event.retained and self._connects <= 1)
        now = self._clock()
        if not ours and now - self._twin_said_at >= _TWIN_EVERY_S:
            self._twin_said_at = now
            log.error(
                "node=%s another process uses this node id: give one of them another edge.node_id", self.node
            )

    def _told(self, told: Told) -> None:
        job = self.session.round
        if job is None or self.session.state is not State.TRAINING:
            return
        match told.kind:
            case "progress":
                self._progress(job, told)
            case "warning":
                log.warning("node=%s %s", self.node, told.text)
            case "done":
                self._trained(job, told)
            case "declined" | "failed":
                self._handle(table.TrainingFailed(told.text))
            case "crashed":
                self._crashed(job, told)
            case _:
                assert_never(told.kind)

    def _trained(self, job: Announcement, told: Told) -> None:
        offer = Offer.model_validate(
            {
                "run": job.run,
                "round": job.round,
                "update": BlobRef(digest=told.digest, bytes=told.bytes),
                "codec": job.plan.codec,
                "samples": told.samples,
                "metrics": told.metrics,
            }
        )
        try:
            self._outbox.put(scratch(self._settings.edge.state_dir) / "update.blob", offer)
        except StoreError as e:
            self._handle(table.TrainingFailed(str(e)))
            return
        log.info(
            "node=%s round=%d trained samples=%d loss=%.4f seconds=%.1f",
            self.node,
            job.round,
            told.samples,
            offer.metrics.loss,
            offer.metrics.seconds,
        )
        if self._store is not None:
            # What was deleted while it trained must not live on in the cache.
            self._store.forget_cached()
        self._handle(table.Trained(offer))

    def _captured(self, told: CaptureTold) -> None:
        match told.kind:
            case "gone" | "trouble" | "failed":
                log.warning("node=%s camera: %s", self.node, told.text)
            case "back" | "ended":
                log.info("node=%s camera: %s", self.node, told.text or told.kind)
            case _:
                log.debug("node=%s camera %s id=%s kept=%d", self.node, told.kind, told.id[:12], told.kept)

    def _crashed(self, job: Announcement, told: Told) -> None:
        if told.signal == signal.SIGKILL:
            self._kills += 1
        else:
            self._crashes += 1
        if self._crashes > MAX_CRASHES:
            self._handle(table.TrainingFailed(told.text))
            return
        tries = self._crashes + self._kills
        pause = min(_CRASH_PAUSE_MAX_S, _CRASH_PAUSE_S * 2 ** min(tries - 1, 10))
        log.warning(
            "node=%s round=%d %s; starting it again in %.0f s", self.node, job.round, told.text, pause
        )
        self._train_at = self._clock() + pause

    # -- commands --------------------------------------------------------------------------------------

    def _handle(self, event: table.Event, has: frozenset[Digest] = frozenset()) -> None:
        self.session, commands = table.handle(self.session, event, self._clock(), has=has)
        self._perform(commands)
        self._status()

    def _perform(self, commands: list[table.Command]) -> None:
        for command in commands:
            match command:
                case table.Fetch(ref):
                    self._fetch(ref)
                case table.Train(announcement):
                    self._crashes = self._kills = 0
                    self._train_began_at = self._clock()
                    self._train(announcement)
                case table.StopTraining():
                    self._train_at = None
                    self._training.stop()
                    self._downloads.abandon()
                case table.MakeOffer(offer):
                    self._outlet.send(offer, self.node)
                case table.Send(offer, missing):
                    self._send(offer, missing)
                case table.Drop(offer, state, why):
                    self._drop(offer, state, why)
                case table.Decline(announcement, why):
                    log.warning("node=%s round=%d declined: %s", self.node, announcement.round, why)
                    self._declined = (announcement.run, announcement.round, why)
                    self.rounds_done += 1
                    self._outbox.set_done(announcement.run, announcement.round)
                case table.AskCurrent():
                    self._ask()
                case _:
                    assert_never(command)

    def _fetch(self, ref: BlobRef) -> None:
        try:
            self._blobs.evict(keep=set())
            self._downloads.fetch(ref, self._clock())
        except StoreError as e:
            self._handle(table.TrainingFailed(str(e)))

    def _train(self, told: Announcement) -> None:
        self._train_at = None
        edge = self._settings.edge
        log.info("node=%s round=%d training epochs=%d", self.node, told.round, told.plan.epochs)
        try:
            self._training.start(
                TrainJob(
                    run=told.run,
                    round=told.round,
                    node=self.node,
                    plan=told.plan,
                    manifest=self._blobs.path(Digest(told.manifest.digest)),
                    trainer=self._blobs.path(Digest(told.trainer.digest)) if told.trainer else None,
                    base=self._blobs.path(Digest(told.base.digest)) if told.base else None,
                    base_digest=told.base.digest if told.base else None,
                    model=self._blobs.path(Digest(told.model.digest)),
                    data_dir=edge.data_dir,
                    store=store_dir(edge) if self._store is not None else None,
                    cache_dir=edge.state_dir / "cache",
                    cache_mb=edge.cache_mb,
                    out=scratch(edge.state_dir),
                    runtime=edge.runtime,
                    threads=edge.threads,
                    # The rest of the time is for the way back.
                    time_s=_TRAIN_SHARE * told.deadline_s if told.plan.partial else None,
                )
            )
        except StoreError as e:
            self._handle(table.TrainingFailed(str(e)))

    def _send(self, offer: Offer, missing: list[tuple[int, int]]) -> None:
        digest = Digest(offer.update.digest)
        self._flow.add(
            digest,
            offer.update.bytes,
            missing,
            topic=lambda i: self._topics.build(Kind.CHUNK_UP, node=self.node, digest=digest, index=i),
            read=partial(self._outbox.read_part, digest),
            patient=True,
        )

    def _drop(self, offer: Offer, state: str, why: str | None) -> None:
        level = logging.INFO if state in ("accepted", "duplicate") else logging.WARNING
        log.log(
            level, "node=%s round=%d update %s%s", self.node, offer.round, state, f": {why}" if why else ""
        )
        # Done before it is removed: after a power cut between the two the update is only offered once more.
        self._outbox.set_done(offer.run, offer.round)
        self._flow.cancel(Digest(offer.update.digest))
        self._outbox.remove(Digest(offer.update.digest))
        self.rounds_done += 1

    def connected(self, limits: Limits) -> None:
        """The broker accepted us: keep to its limits, say who we are, ask what is current."""
        self._connects += 1
        if limits.receive_maximum:
            self._window = min(self._window, limits.receive_maximum)
        log.info("node=%s broker connected protocol=%s", self.node, limits.protocol)
        self._outlet.restore()
        self.renew()

    def renew(self) -> None:
        """The link or the coordinator is new: ask for everything again."""
        self._flow.clear()
        self._downloads.again(self._clock())
        self._guarded(partial(self._handle, table.Reconnected()))

    # -- what goes out ---------------------------------------------------------------------------------

    def _status(self) -> None:
        told = self.session.round
        run, number = (told.run, told.round) if told is not None else (None, None)
        if self.session.state is not State.IDLE:
            # It takes part again: what it declined before is no longer news.
            self._declined = None
        why = self._trouble
        if self._declined is not None:
            run, number, declined_why = self._declined
            why = why or declined_why
        # After every event, so it is cheap where nothing has changed.
        says = (self.session.state, why, run, number, self._labels, self._declined, self._trouble)
        if says == self._said:
            return
        self._said = says
        status = NodeStatus(
            state="paused" if self._trouble else _STATES[self.session.state],
            why=why[:500] if why else None,
            run=run,
            round=number,
            samples=sum(self._labels.values()),
            labels=self._labels,
            declined=True if self._declined is not None else None,
            runtimes=self._runtimes,
            memory_mb=self._memory_mb,
            version=__version__,
            session=self._instance,
        )
        self._outlet.send(status, self.node)

    def _progress(self, job: Announcement, told: Told) -> None:
        now = self._clock()
        if now - self._progress_at < _PROGRESS_EVERY_S:
            return
        self._progress_at = now
        self._outlet.send(
            Progress.model_validate(
                {
                    "run": job.run,
                    "round": job.round,
                    **told.model_dump(include={"epoch", "epochs", "loss", "accuracy", "left_s"}),
                }
            ),
            self.node,
        )

    def _count(self, now: float) -> None:
        self._counted_at = now
        try:
            self._labels = census.count(self._settings.edge.data_dir, self._store)
            self._trouble = None
        except DataError as e:
            self._trouble = str(e)
        self._status()

    def _refresh(self, now: float) -> None:
        """A broker whose queue overflows loses messages in silence: nothing is said only once."""
        self._refreshed_at = now
        self._outlet.restore()
        self._ask()

    def _ask(self) -> None:
        self._outlet.send(Ask(session=self._instance, clock=int(self._wall())), self.node)

    def _guarded(self, act: Callable[[], object]) -> None:
        """What a peer or the disk did wrong is said, and the loop goes on."""
        try:
            act()
        except (WireError, StoreError) as e:
            self._complaints.about("", e)


def lost(instance: str, why: str) -> NodeStatus:
    """What a node's status says once it is gone."""
    return NodeStatus(state="lost", why=why, version=__version__, session=instance)


def will(topics: Topics, node: NodeId, instance: str) -> Will:
    """What the broker says when the node vanishes."""
    return Will(topics.build(Kind.NODE_STATUS, node=node), lost(instance, "connection lost").encode())
