"""A virtual node: the node's own state table, codecs and messages, without threads, disk or idle turns.

It wakes where a message is here, where its training ends, and where an offer is to be repeated. Its status
makes no promise to be repeated (`repeat_s`): in a fleet of thousands that would cost more than training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, Protocol, assert_never

from apiary import __version__
from apiary.bus.bus import Connected, Disconnected, Received
from apiary.bus.flow import ChunkFlow
from apiary.wire import Digest, NodeId, capabilities
from apiary.wire.chunks import Assembly
from apiary.wire.messages import (
    Announcement,
    Ask,
    BlobRef,
    Grant,
    Message,
    NodeStatus,
    Notice,
    Offer,
    Receipt,
    TrainMetrics,
    Want,
    parts_of,
)
from apiary.wire.topics import Topic, TopicKind, Topics
from apiary_cli.simulation.network import NodeBus
from apiary_cli.simulation.training import ShareOutcome, UpdateFile
from apiary_edge.status.presence import lost, will
from apiary_edge.training import session as table
from apiary_edge.training.newest_round import NewestRound
from apiary_edge.training.session import Session, SessionState

log = logging.getLogger(__name__)

_LISTENS: Final = (
    TopicKind.NODE_NOTICE,
    TopicKind.NODE_GRANT,
    TopicKind.NODE_RECEIPT,
    TopicKind.ROUND_CURRENT,
)
_CACHED: Final = 64
Act = Callable[[], None]


class Surroundings(Protocol):
    """What a virtual node lives in."""

    topics: Topics
    offer_idle_s: float
    window: int

    @property
    def now(self) -> float:
        """Virtual seconds."""

    def at(self, when: float, act: Act) -> None:
        """Plan something."""

    def connect(self, node: VirtualNode) -> NodeBus:
        """The node's end of its link; not connected yet."""

    def train(self, node: VirtualNode, announcement: Announcement) -> None:
        """Begin a training, which ends with `node.trained` or `node.vanish`."""


class VirtualNode:
    """One node: number `place` of the fleet, with `labels` pictures of each label."""

    __slots__ = (
        "_around", "_bus", "_coming", "_declined", "_flow", "_has", "_newest", "_offered_at", "_said",
        "_update", "attempt", "labels", "name", "place", "session",
    )  # fmt: skip

    def __init__(self, name: NodeId, place: int, labels: dict[str, int], around: Surroundings):
        self.name = name
        self.place = place
        self.labels = labels
        self.attempt = 0
        """Trainings that it began or gave up: what is planned for an earlier one is void."""
        self.session = Session(name, around.offer_idle_s)
        self._around = around
        self._bus = around.connect(self)
        self._newest = NewestRound()
        self._flow = ChunkFlow()
        self._has: frozenset[Digest] = frozenset()
        self._coming: dict[Digest, Assembly] = {}
        self._update: UpdateFile | None = None
        self._declined: tuple[str, int, str] | None = None
        self._said: tuple[object, ...] | None = None
        self._offered_at: float | None = None
        for kind in _LISTENS:
            self._bus.subscribe(around.topics.pattern(kind, node=name))

    def step(self) -> None:
        """Take what is here, and send what there is room for."""
        for event in self._bus.poll(0):
            match event:
                case Received():
                    self._received(event)
                case Connected():
                    self._said = None
                    if self._newest.heard is not None:
                        self._handle(table.Reconnected())
                    self._say()
                case Disconnected():
                    pass
                case _:
                    log.warning("node=%s %s", self.name, event)
        self._pump()

    def trained(
        self, attempt: int, announcement: Announcement, outcome: ShareOutcome, update: UpdateFile
    ) -> None:
        """The end of a training; what came of one that was given up is dropped."""
        if attempt != self.attempt or self.session.state is not SessionState.TRAINING:
            update.remove()
            return
        if outcome.kind != "done":
            self._handle(table.TrainingFailed(outcome.text))
            return
        self._update = update
        offer = Offer(
            run=announcement.run,
            round=announcement.round,
            update=BlobRef(digest=outcome.digest, bytes=outcome.bytes),
            codec=announcement.plan.codec,
            samples=outcome.samples,
            metrics=outcome.metrics or TrainMetrics(loss=0.0),
        )
        self._handle(table.Trained(offer))
        self._pump()

    def vanish(self, attempt: int, away_s: float) -> None:
        """The node is gone without a word in the middle of a training, and back after a while."""
        if attempt != self.attempt or self.session.state is not SessionState.TRAINING:
            return
        self.attempt += 1
        done = self.session.done
        self.session = Session(self.name, self._around.offer_idle_s, done=done)
        self._coming.clear()
        self._flow.clear()
        self._bus.vanish(away_s)
        self._around.at(self._around.now + away_s, self.step)

    def will(self) -> Any:
        """What the broker says when it vanishes."""
        return will(self._around.topics, self.name, _instance(self.name))

    def leave(self) -> None:
        """The simulation is over."""
        self._send(lost(_instance(self.name), "stopped"))

    # -- what comes in ---------------------------------------------------------------------------------

    def _received(self, event: Received) -> None:
        topic = _parsed(self._around.topics, event.topic)
        match topic.kind:
            case TopicKind.ROUND_CURRENT if event.payload:
                self._announced(_announcement(event.payload), None)
            case TopicKind.NODE_NOTICE:
                notice = Notice.decode(event.payload, who="coordinator")
                if notice.announcement is None:
                    self._newest.nothing_open()
                    self._handle(table.NothingOpen())
                else:
                    self._announced(notice.announcement, notice.invited, again=bool(notice.again))
            case TopicKind.NODE_GRANT:
                grant = Grant.decode(event.payload, who="coordinator")
                self._handle(table.Granted(Digest(grant.digest), grant.missing))
            case TopicKind.NODE_RECEIPT:
                receipt = Receipt.decode(event.payload, who="coordinator")
                self._handle(
                    table.Receipted(Digest(receipt.digest), receipt.state, receipt.why, receipt.missing or [])
                )
            case TopicKind.CHUNK_DOWN if topic.digest is not None and topic.index is not None:
                self._chunk(topic.digest, topic.index, event.payload)
            case _:
                pass

    def _announced(self, announcement: Announcement, invited: bool | None, *, again: bool = False) -> None:
        if self._newest.take(announcement, self._around.now):
            self._handle(table.Announced(announcement, invited, None, again), self._has)

    def _chunk(self, digest: Digest, index: int, payload: bytes) -> None:
        coming = self._coming.get(digest)
        if coming is None:
            return
        # Nothing is damaged on the way from memory to memory.
        coming.accept(index, payload, verify=False)
        if coming.complete:
            self._forget(digest)
            self._handle(table.BlobFetched(digest))

    # -- commands --------------------------------------------------------------------------------------

    def _handle(self, event: table.Event, has: frozenset[Digest] = frozenset()) -> None:
        self.session, commands = table.handle(self.session, event, self._around.now, has=has)
        for command in commands:
            self._perform(command)
        self._say()

    def _perform(self, command: table.Command) -> None:
        match command:
            case table.FetchBlob(ref):
                self._fetch(ref)
            case table.Train(announcement):
                self._has = frozenset(Digest(ref.digest) for ref in parts_of(announcement))
                self.attempt += 1
                self._around.train(self, announcement)
            case table.StopTraining():
                self.attempt += 1
                for digest in list(self._coming):
                    self._forget(digest)
            case table.MakeOffer(offer):
                self._send(offer)
                self._repeat_later()
            case table.Send(offer, missing):
                self._upload(offer, missing)
            case table.Drop(offer, _, _) | table.Discard(offer):
                self._flow.cancel(Digest(offer.update.digest))
                if self._update is not None:
                    self._update.remove()
                    self._update = None
            case table.Decline(announcement, why):
                self._declined = (announcement.run, announcement.round, why)
            case table.AskCurrent():
                self._send(Ask())
            case _:
                assert_never(command)

    def _fetch(self, ref: BlobRef) -> None:
        digest = Digest(ref.digest)
        coming = self._coming[digest] = Assembly(digest, ref.bytes)
        self._bus.subscribe(self._around.topics.pattern(TopicKind.CHUNK_DOWN, digest=digest))
        self._send(Want(digest=digest, missing=coming.missing()))

    def _forget(self, digest: Digest) -> None:
        self._coming.pop(digest, None)
        self._bus.unsubscribe(self._around.topics.pattern(TopicKind.CHUNK_DOWN, digest=digest))

    def _upload(self, offer: Offer, missing: list[tuple[int, int]]) -> None:
        if self._update is None:
            return
        topic = self._around.topics.build(TopicKind.UPLOAD, node=self.name)
        self._flow.add(
            Digest(offer.update.digest),
            offer.update.bytes,
            missing,
            topic=lambda index: topic,
            read=self._update.read,
            patient=True,
        )

    def _pump(self) -> None:
        if not self._flow.pending:
            return
        self._flow.pump(self._bus, self._around.window)
        if self._flow.pending and (room := self._bus.next_room) is not None:
            self._around.at(room, self.step)

    def _repeat_later(self) -> None:
        """An offer that nobody answers is repeated, as the table says."""
        pause = self.session.offer_idle_s * min(2**self.session.unanswered, table.OFFER_MAX_PAUSE)
        due = self._offered_at = self.session.heard_at + pause
        self._around.at(due, partial(self._repeat, due))

    def _repeat(self, due: float) -> None:
        if due == self._offered_at and self.session.state is SessionState.SENDING:
            if self._around.now - self.session.heard_at < self.session.offer_idle_s:
                self._repeat_later()  # it was answered since
            else:
                self._handle(table.SessionTick())
                self._pump()

    # -- what goes out ---------------------------------------------------------------------------------

    def _say(self) -> None:
        session = self.session
        state = "ready"
        if session.state is not SessionState.IDLE:
            self._declined = None
            state = "sending" if session.state is SessionState.SENDING else "training"
        run, number, why = self._declined or (None, None, None)
        if self._declined is None and session.round is not None:
            run, number = session.round.run, session.round.round
        said = (state, run, number, why)
        if said == self._said:
            return
        self._said = said
        self._send(
            NodeStatus.model_validate(
                {
                    "state": state,
                    "why": why,
                    "run": run,
                    "round": number,
                    "samples": sum(self.labels.values()),
                    "labels": self.labels,
                    "declined": True if self._declined is not None else None,
                    "runtimes": ["litert"],
                    "version": __version__,
                    "capabilities": capabilities.of_this_version(),
                    "session": _instance(self.name),
                }
            )
        )

    def _send(self, message: Message) -> None:
        kind = message.kind
        topic = self._around.topics.build(kind, node=self.name)
        self._bus.publish(topic, message.encode(), qos=kind.qos, retain=kind.retain)


def _instance(name: str) -> str:
    return f"virtual-{name}"[:64]


@lru_cache(maxsize=_CACHED)
def _announcement(payload: bytes) -> Announcement:
    """The same bytes come to every node."""
    return Announcement.decode(payload, who="coordinator")


@lru_cache(maxsize=_CACHED)
def _parsed(topics: Topics, topic: str) -> Topic:
    return topics.parse(topic)
