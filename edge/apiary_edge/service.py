"""The node's service: one loop that moves messages between the bus and the session, and performs commands."""

import logging
import math
from dataclasses import replace
from functools import partial
from typing import Any, Final, assert_never

from apiary.bus.bus import BrokerLimits, Bus
from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Tap, no_tap
from apiary.clocks import Clocks
from apiary.errors import BusError, StoreError
from apiary.files import clear_partial
from apiary.identity.gate import OPEN, MessageGate
from apiary.service import Service
from apiary.settings import Settings
from apiary.wire import Digest, NodeId
from apiary.wire.messages import (
    Announcement,
    Ask,
    BlobRef,
    CoordinatorStatus,
    Grant,
    NodeStatus,
    Notice,
    Receipt,
    parts_of,
)
from apiary.wire.topics import Topic, TopicKind
from apiary_edge.feature import NodeFeature
from apiary_edge.status.presence import NodeFacts, Presence, greeting_s, lost, repeat_s, will
from apiary_edge.stores import NodeStores
from apiary_edge.training import session as table
from apiary_edge.training.newest_round import NewestRound
from apiary_edge.training.process import Training
from apiary_edge.training.session import Session, SessionState
from apiary_edge.training.supervisor import TrainingSupervisor
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.downloads import Downloads
from apiary_edge.transfer.uploads import UpdateUpload

log = logging.getLogger(__name__)

__all__ = ["RECEIVE_MAXIMUM", "Edge", "will"]

RECEIVE_MAXIMUM: Final = 2
"""Messages that the broker may have on their way to a node. It copies each for its receiver: with its own
limit of 100 the models of 1000 nodes that were slow to read took 475 MB of it (measured), with a model of
14 MB it could be 12 GB. Two chunks in a round trip are 4.8 Mbit/s at 400 ms."""


class Edge(Service[NodeFeature]):
    """One node. `step` is one turn of its loop; `features` are added before `start`."""

    kinds = (
        TopicKind.NODE_NOTICE,
        TopicKind.NODE_GRANT,
        TopicKind.NODE_RECEIPT,
        TopicKind.NODE_STATUS,
        TopicKind.ROUND_CURRENT,
        TopicKind.COORDINATOR_STATUS,
    )

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        stores: NodeStores,
        training: Training,
        clocks: Clocks,
        facts: NodeFacts,
        tap: Tap = no_tap,
        gate: MessageGate = OPEN,
    ):
        edge = settings.edge
        self.node = NodeId(edge.node_id)
        super().__init__(bus, settings.topics, clock=clocks.monotonic, gate=gate, tap=tap, node=self.node)
        self.session = Session(self.node, edge.upload_idle_s, done=stores.outbox.done())
        self.rounds_done = 0
        self.features: list[NodeFeature] = []
        self.clocks = clocks
        self._settings = settings
        self._stores = stores
        self._facts = facts
        self.channel = NodeChannel(self.node, bus, self._topics, self._outlet)
        self.downloads = Downloads(
            self.channel,
            stores.blobs,
            idle_s=edge.want_idle_s,
            keeps=lambda: {digest for f in self.features for digest in f.keeps()},
        )
        self._presence = Presence(
            edge,
            self.channel,
            facts,
            stores.samples,
            more=self._more_status,
        )
        self.training = TrainingSupervisor(edge, self.channel, stores, training, self._handle)
        self._refreshed_at = clocks.monotonic()
        self._connects = 0
        self._coordinator = ""
        self._newest = NewestRound()
        self._sending = UpdateUpload(self.channel, stores.outbox, settings.broker.inflight)
        self._refresh_s = repeat_s(edge)
        self._greet_at = math.inf
        """When a new coordinator gets this node's retained state again, and what is current is requested."""

    @property
    def samples(self) -> int:
        """Pictures that may be trained, as counted last."""
        return self._presence.samples

    @property
    def busy(self) -> bool:
        """Whether a round takes this node's time, or something holds it from training."""
        return self.session.state is not SessionState.IDLE or self._presence.pause_reasons.why is not None

    def start(self) -> None:
        """Count the pictures, take up what the outbox holds, subscribe. Raises DataError without pictures."""
        now = self._clock()
        clear_partial(self._settings.edge.state_dir, below=True)
        if self._stores.samples is not None:
            self._stores.samples.reconcile()
        self._presence.begin(now)
        self._start(now)
        waiting = self._stores.outbox.waiting()
        if waiting:
            log.info("node=%s round=%d the outbox holds an update; sending it", self.node, waiting[-1].round)
            self.session, commands = table.resume(self.session, waiting[-1], now)
            self._perform(commands)
        self._say()

    def close(self) -> None:
        """End the children and publish the last status; the outbox is sent after the next start."""
        self.training.stop()
        self.downloads.abandon()
        self._close(lost(self._facts.instance, "stopped", self._settings.edge.tags))

    def _disconnected(self, error: BusError) -> None:
        self._sending.clear()
        for feature in self.features:
            self._guarded(partial(feature.disconnected, str(error)))

    def _work(self, now: float) -> None:
        self._guarded(partial(self.training.tick, now))
        self._guarded(partial(self.downloads.tick, now))
        self._guarded(partial(self._handle, table.SessionTick()))

    def _flush(self, now: float) -> None:
        self._guarded(partial(self._count, now))
        if now - self._refreshed_at >= self._refresh_s or now >= self._greet_at:
            # A broker whose queue overflows loses messages in silence: nothing is sent only once.
            self._refreshed_at, self._greet_at = now, math.inf
            self._outlet.restore()
            self._ask()
        self._guarded(self._sending.pump)
        if (digest := self._sending.unreadable()) is not None:
            self._guarded(partial(self._handle, table.Unreadable(digest)))

    # -- what comes in ---------------------------------------------------------------------------------

    def _received(self, delivery: Delivery) -> None:
        topic, content = delivery.topic, delivery.content
        if isinstance(content, Announcement | Notice | Receipt | CoordinatorStatus):
            self._tap(topic.kind, topic.node, content)
        match content:
            case bytes():
                self._chunk(topic, content)
            case Announcement():
                self._announced(content, None)
            case Notice(announcement=None, labels=labels):
                self._presence.know(labels or ())
                self._newest.nothing_open()
                self._handle(table.NothingOpen())
            case Notice(announcement=announcement, invited=invited, again=again):
                assert announcement is not None  # noqa: S101 - the case before
                self._announced(announcement, invited, again=bool(again))
            case Grant(digest=digest, missing=missing, one_topic=one_topic):
                self._sending.one_topic = bool(one_topic)
                self._handle(table.Granted(Digest(digest), missing))
            case Receipt(digest=digest, state=state, why=why, missing=missing):
                self._handle(table.Receipted(Digest(digest), state, why, missing or []))
            case CoordinatorStatus(state="online", epoch=epoch, nodes=nodes):
                self._served_by(epoch, nodes or 0)
            case NodeStatus():
                self._presence.heard(
                    content,
                    retained=delivery.retained,
                    now=self._clock(),
                    first_connect=self._connects <= 1,
                )

    def _served_by(self, epoch: str, nodes: int) -> None:
        """A coordinator that is new knows nothing of us, and a broker need not have kept what we published.

        What it waits for is sent at once, the rest spread over seconds where there are many nodes.
        """
        if epoch == self._coordinator:
            return
        self._coordinator = epoch
        self._greet_at = self._clock() + greeting_s(self.node, epoch, nodes)
        self._again(table.NewCoordinator())

    def _announced(self, announcement: Announcement, invited: bool | None, *, again: bool = False) -> None:
        now = self._clock()
        if not self._newest.take(announcement, now):
            log.debug("node=%s round=%d an announcement that is out of date", self.node, announcement.round)
            return
        self._served_by(announcement.epoch, announcement.cohort_size)
        self._presence.know(announcement.labels)
        for feature in self.features:
            self._guarded(partial(feature.announced, announcement))
        if self._presence.pause_reasons.why is not None and self.session.state is SessionState.IDLE:
            return  # once it is no longer held it asks what is current
        refs = parts_of(announcement)
        if announcement.state not in table.OPEN_STATES or self.session.state is SessionState.SENDING:
            refs = []  # nothing begins with this one: the disk need not be read
        has = frozenset(Digest(r.digest) for r in refs if self._stores.blobs.verify(Digest(r.digest)))
        unfit = next((why for f in self.features if (why := f.unfit(announcement)) is not None), None)
        self._handle(table.Announced(announcement, invited, unfit, again), has)

    def _chunk(self, topic: Topic, payload: bytes) -> None:
        if topic.digest is None or topic.index is None:
            return
        whole = self.downloads.chunk(topic.digest, topic.index, payload, self._clock())
        if whole is not None:
            self._handle(table.BlobFetched(whole))
            for feature in self.features:
                self._guarded(partial(feature.fetched, whole))

    # -- commands --------------------------------------------------------------------------------------

    def _handle(self, event: table.Event, has: frozenset[Digest] = frozenset()) -> None:
        self.session, commands = table.handle(self.session, event, self._clock(), has=has)
        self._perform(commands)
        self._say()

    def _perform(self, commands: list[table.Command]) -> None:
        for command in commands:
            match command:
                case table.FetchBlob(ref):
                    # One that failed for lack of room has ended the round, the others with it.
                    if Digest(ref.digest) in self.session.missing:
                        self._fetch(ref)
                case table.Train(announcement):
                    self.training.begin(announcement, self._clock())
                case table.StopTraining():
                    self.training.stop()
                    self.downloads.abandon("round")
                case table.MakeOffer(offer):
                    self.channel.send(offer)
                case table.Send(offer, missing):
                    self._sending.add(offer, missing)
                case table.Drop(offer, state, why):
                    self._sending.answered(offer, state, why)
                    self.rounds_done += 1
                case table.Discard(offer):
                    self._sending.discard(offer)
                case table.Decline(announcement, why):
                    log.warning("node=%s round=%d declined: %s", self.node, announcement.round, why)
                    self._presence.declined = (announcement.run, announcement.round, why)
                    self.rounds_done += 1
                    self._stores.outbox.set_done(announcement.run, announcement.round)
                case table.AskCurrent():
                    self._ask()
                case _:
                    assert_never(command)

    def _fetch(self, ref: BlobRef) -> None:
        try:
            self.downloads.fetch(ref, self._clock())
        except StoreError as e:
            self._handle(table.TrainingFailed(str(e)))

    def connected(self, limits: BrokerLimits) -> None:
        """The broker accepted us: keep to its limits, say who we are, ask what is current."""
        self._connects += 1
        if limits.receive_maximum:
            self._sending.window = min(self._sending.window, limits.receive_maximum)
        super().connected(limits)

    def renew(self) -> None:
        """The connection is new: request everything again."""
        self._again(table.Reconnected())

    def _again(self, event: table.Reconnected | table.NewCoordinator) -> None:
        self._sending.clear()
        self.downloads.again(self._clock())
        self._guarded(partial(self._handle, event))
        super().renew()

    # -- what goes out ---------------------------------------------------------------------------------

    def _count(self, now: float) -> None:
        if self._presence.tick(now):
            self._say()

    def _say(self) -> None:
        self._presence.say(self.session)

    def _more_status(self) -> dict[str, Any]:
        found = {k: v for f in self.features for k, v in f.status().items()}
        return {"also_held_out": self.training.also_held_out, **found}

    # -- for features ----------------------------------------------------------------------------------

    def hold(self, who: str, why: str | None) -> None:
        """Begin no training for this reason, until the same `who` takes it back with None."""
        held = self._presence.pause_reasons.why is not None
        if self._presence.pause_reasons.set(who, why):
            self._say()
            if held and self._presence.pause_reasons.why is None:
                self._ask()

    def leave(self) -> None:
        """Leave the round in hand as if it had not been announced."""
        self._handle(table.NothingOpen())

    def is_over(self, run: str, number: int) -> bool:
        """Whether a round takes no update any more, by what this node has received."""
        return self._newest.over(run, number)

    def forget(self) -> None:
        """Let the round that was answered or declined last be trained again; asks what is current."""
        self.session = replace(self.session, done=None)
        self._stores.outbox.forget_done()
        self._presence.declined = None
        self._say()
        self._ask()

    def _ask(self) -> None:
        self.channel.send(Ask(session=self._facts.instance, clock=int(self.clocks.wall())))
