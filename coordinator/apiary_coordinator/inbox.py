"""Hands the messages of nodes to the roster, the model server and the run; notices another coordinator."""

import logging
from typing import Final

from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Tap
from apiary.complaints import Complaints
from apiary.wire import NodeId, chunks
from apiary.wire.messages import Ask, CoordinatorStatus, NodeStatus, Notice, Offer, Progress, Want
from apiary.wire.topics import Topic, TopicKind
from apiary_coordinator.fleet.floods import MOST, Floods
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.resources import Resources
from apiary_coordinator.round.collector import receipt
from apiary_coordinator.run.host import RunHost
from apiary_coordinator.run.run import Run

log = logging.getLogger(__name__)

KINDS: Final = (
    TopicKind.NODE_STATUS,
    TopicKind.NODE_ASK,
    TopicKind.NODE_WANT,
    TopicKind.NODE_OFFER,
    TopicKind.NODE_PROGRESS,
    TopicKind.UPLOAD,
    TopicKind.CHUNK_UP,
    TopicKind.COORDINATOR_STATUS,
)
_OF_NODES: Final = frozenset(
    {
        TopicKind.NODE_STATUS,
        TopicKind.NODE_ASK,
        TopicKind.NODE_WANT,
        TopicKind.NODE_OFFER,
        TopicKind.NODE_PROGRESS,
        TopicKind.NODE_RELEASE,
        TopicKind.NODE_REPLY,
        TopicKind.CHUNK_UP,
    }
)
_CLOCK_OFF_S: Final = 3600.0
_MAX_EARLY: Final = 20_000
"""Offers that wait for their run; one a node."""


class Inbox:
    """Called on the loop."""

    def __init__(
        self,
        federation: str,
        host: RunHost,
        roster: Roster,
        resources: Resources,
        *,
        complaints: Complaints,
        tap: Tap,
    ):
        self._federation = federation
        self._host = host
        self._roster = roster
        self._clocks = resources.clocks
        self._journal = resources.storage.journal
        self._outlet = resources.outgoing.outlet
        self._model_server = resources.outgoing.model_server
        self._complaints = complaints
        self._tap = tap
        self._floods = Floods()
        self._early: dict[NodeId, Offer] = {}
        """Offers that came while their run was being taken up, by node the newest."""

    def received(self, delivery: Delivery) -> None:
        """Take a message. Raises WireError, StoreError."""
        now, node, run = self._clocks.monotonic(), delivery.topic.node, self._host.current
        content = delivery.content
        if isinstance(content, CoordinatorStatus):
            self._other_coordinator(content, retained=delivery.retained)
        if node is None:
            return
        if not isinstance(content, bytes) and self._floods.sent(node, now):
            log.warning(
                "node=%s sent more than %d messages within a minute, as no node does that works: if others' "
                "are lost by it, revoke it (docs/security.md)",
                node,
                MOST,
            )
        if self._alive(delivery) and self._roster.hear(node, self._clocks.wall(), now):
            log.info("node=%s is heard again", node)
            self._back(node, run, now)
        match content:
            case bytes():
                self._chunk(delivery.topic, content, now)
            case NodeStatus():
                self._node_status(node, content, run, now)
                if self._alive(delivery):  # the first of a node that was not known
                    self._roster.hear(node, self._clocks.wall(), now)
            case None if delivery.topic.kind is TopicKind.NODE_STATUS:
                self._removed(node, now)
            case Offer():
                self._offer(node, content, run, now)
            case Want():
                self._model_server.want(node, content, now)
            case Ask():
                self._answer_ask(node, content, run)
            case Progress():
                self._tap(TopicKind.NODE_PROGRESS, node, content)
            case _:
                pass

    def tick(self, now: float) -> None:
        """Take what had to wait until its run could answer. Raises WireError, StoreError."""
        run = self._host.current
        if self._early and (run is None or run.stage != "building"):
            early, self._early = self._early, {}
            for node, offer in early.items():
                self._offer(node, offer, run, now)

    def _alive(self, delivery: Delivery) -> bool:
        """Whether a message came from a node itself just now: not what the broker held, nor a last will."""
        if delivery.retained or delivery.topic.kind not in _OF_NODES:
            return False
        content = delivery.content
        return content is not None and not (isinstance(content, NodeStatus) and content.state == "lost")

    def _back(self, node: NodeId, run: Run | None, now: float) -> None:
        """A node that was silent is heard again: it may take its place in the round."""
        if run is None:
            return
        run.newcomer(node, now)
        if run.runner is not None:
            run.runner.node_status(node, self._roster[node].status, self._roster, now)

    def _chunk(self, topic: Topic, payload: bytes, now: float) -> None:
        runner = self._host.runner
        if runner is None or topic.node is None:
            return
        if topic.kind is TopicKind.UPLOAD:
            prefix, index = chunks.named(payload)
            runner.collector.chunk(topic.node, prefix, index, payload, now)
        elif topic.digest is not None and topic.index is not None:
            runner.collector.chunk(topic.node, topic.digest, topic.index, payload, now)

    def _node_status(self, node: NodeId, status: NodeStatus, run: Run | None, now: float) -> None:
        self._tap(TopicKind.NODE_STATUS, node, status)
        before = self._roster.update(node, status, now)
        if node not in self._roster:
            self._complaints.once(
                "no place in the roster",
                "",
                f"node {node} takes part in nothing: {len(self._roster)} nodes are known, no more are "
                "taken in. Those that are gone for good leave when their retained status is removed from the "
                "broker (`mosquitto_pub -r -n -t .../node/N/status`)",
            )
            return
        if status.also_held_out:
            self._complaints.once(
                "pictures that are held out, too",
                node,
                f"node {node} trains on {status.also_held_out} of the held-out pictures: the accuracy looks "
                "better than it is; remove them from coordinator.test_data or from the node",
            )
        if (why := self._host.demands.left_out(status)) is not None:
            self._complaints.once("labels that the model has not", node, f"node {node}: {why}")
        if before is None or before.status.state != status.state:
            log.debug("node=%s state=%s why=%s", node, status.state, status.why)
        if run is None:
            return
        if before is None or before.status.state == "lost":
            run.newcomer(node, now)
        if run.runner is not None:
            run.runner.node_status(node, status, self._roster, now)

    def _removed(self, node: NodeId, now: float) -> None:
        """Its retained status was removed from the broker: it is gone for good, and its place is free."""
        if node not in self._roster:
            return
        log.info("node=%s its status was removed from the broker: it is forgotten", node)
        self._roster.forget(node)
        if (runner := self._host.runner) is not None:
            lost = NodeStatus(state="lost", why="its status was removed from the broker")
            runner.node_status(node, lost, self._roster, now)

    def _offer(self, node: NodeId, offer: Offer, run: Run | None, now: float) -> None:
        self._tap(TopicKind.NODE_OFFER, node, offer)
        if run is not None and run.stage == "building":
            # A round of it may be resumed in a moment, and the node would repeat its offer after minutes.
            if len(self._early) < _MAX_EARLY or node in self._early:
                self._early[node] = offer
            return
        runner = self._host.runner
        if runner is not None and (offer.run, offer.round) == (runner.round.run, runner.round.number):
            runner.collector.offered(node, offer, now)
            return
        if self._journal.counted(offer.run, offer.round, node):
            # Its first receipt was lost on the way.
            self._outlet.send(receipt(offer, "duplicate"), node)
        else:
            why = f"round {offer.round} of run {offer.run} is over"
            self._outlet.send(receipt(offer, "closed", why), node)

    def _answer_ask(self, node: NodeId, ask: Ask, run: Run | None) -> None:
        self._tap(TopicKind.NODE_ASK, node, ask)
        off = abs(ask.clock - self._clocks.wall()) if ask.clock is not None else 0.0
        if off > _CLOCK_OFF_S:
            self._complaints.once(
                "a wrong clock",
                node,
                f"node {node}: its clock is {off / 86400:.1f} days off; rounds do not mind, but TLS and logs "
                "do: check its time synchronisation (timedatectl)",
            )
        notice = run.notice(node) if run is not None else Notice()
        if notice is not None and notice.announcement is None and (labels := self._host.demands.labels):
            # An owner who has labelled nothing yet should know what there is to choose from.
            notice = notice.model_copy(update={"labels": list(labels)})
        if notice is not None:  # else the announcement that follows is the answer
            self._outlet.send(notice, node)

    def _other_coordinator(self, other: CoordinatorStatus, *, retained: bool) -> None:
        if retained or other.epoch == self._host.epoch:
            return
        if other.state == "online":
            log.error(
                "another coordinator (epoch=%s) serves the federation %r on this broker: stop one of them, "
                "or give one another `federation`",
                other.epoch,
                self._federation,
            )
        else:
            self._host.publish_status()
