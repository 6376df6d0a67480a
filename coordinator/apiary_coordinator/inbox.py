"""What nodes say, handed to the roster, the downlink and the run; and what another coordinator says here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from apiary import __version__
from apiary.bus.inlet import Delivery
from apiary.bus.outlet import Tap
from apiary.complaints import Complaints
from apiary.wire import NodeId
from apiary.wire.messages import Ask, CoordinatorStatus, NodeStatus, Notice, Offer, Progress, Want
from apiary.wire.topics import Topic, TopicKind
from apiary_coordinator.feature import Desk
from apiary_coordinator.round.collector import receipt
from apiary_coordinator.run.run import Run

log = logging.getLogger(__name__)

KINDS: Final = (
    TopicKind.NODE_STATUS,
    TopicKind.NODE_ASK,
    TopicKind.NODE_WANT,
    TopicKind.NODE_OFFER,
    TopicKind.NODE_PROGRESS,
    TopicKind.CHUNK_UP,
    TopicKind.COORDINATOR_STATUS,
)
_CLOCK_OFF_S: Final = 3600.0


class Inbox:
    """Called on the loop. `here` says again that this coordinator is online."""

    def __init__(self, desk: Desk, complaints: Complaints, *, tap: Tap, here: Callable[[], None]):
        self._desk = desk
        self._complaints = complaints
        self._tap = tap
        self._here = here

    def received(self, delivery: Delivery) -> None:
        """Take a message. Raises WireError, StoreError."""
        now, node, course = self._desk.clock(), delivery.topic.node, self._desk.course()
        content = delivery.content
        if isinstance(content, CoordinatorStatus):
            self._other_coordinator(content, retained=delivery.retained)
        if node is None:
            return
        if not delivery.retained and isinstance(content, Ask | Want | Offer | Progress):
            self._desk.roster.hear(node, self._desk.wall())
        match content:
            case bytes():
                self._chunk(delivery.topic, content, course, now)
            case NodeStatus():
                self._node_status(node, content, course, now)
                if not delivery.retained and content.state != "lost":  # that is the broker's word
                    self._desk.roster.hear(node, self._desk.wall())
            case None if delivery.topic.kind is TopicKind.NODE_STATUS:
                self._removed(node, course, now)
            case Offer():
                self._offer(node, content, course, now)
            case Want():
                self._desk.down.want(node, content, now)
            case Ask():
                self._asked(node, content, course)
            case Progress():
                self._tap(TopicKind.NODE_PROGRESS, node, content)
            case _:
                pass

    def _chunk(self, topic: Topic, payload: bytes, course: Run | None, now: float) -> None:
        live = course.live if course is not None else None
        if live is not None and topic.node and topic.digest is not None and topic.index is not None:
            live.collection.chunk(topic.node, topic.digest, topic.index, payload, now)

    def _node_status(self, node: NodeId, status: NodeStatus, course: Run | None, now: float) -> None:
        self._tap(TopicKind.NODE_STATUS, node, status)
        before = self._desk.roster.update(node, status, now)
        if node not in self._desk.roster:
            self._complaints.once(
                "no place in the roster",
                "",
                f"node {node} takes part in nothing: {len(self._desk.roster)} nodes are known, no more are "
                "taken in. Those that are gone for good leave when their retained status is removed from the "
                "broker (`mosquitto_pub -r -n -t .../node/N/status`)",
            )
            return
        if status.version not in ("", __version__) and status.state != "lost":
            self._complaints.once(
                "another version",
                f"{node} {status.version}",
                f"node {node} runs version {status.version}, the coordinator {__version__}",
            )
        if before is None or before.status.state != status.state:
            log.debug("node=%s state=%s why=%s", node, status.state, status.why)
        if course is None:
            return
        if before is None or before.status.state == "lost":
            course.newcomer(now)
        if course.live is not None:
            course.live.node_status(node, status, self._desk.roster, now)

    def _removed(self, node: NodeId, course: Run | None, now: float) -> None:
        """Somebody took its status off the broker: it is gone for good, and no place is kept for it."""
        if node not in self._desk.roster:
            return
        log.info("node=%s its status was removed from the broker: it is forgotten", node)
        self._desk.roster.forget(node)
        if course is not None and course.live is not None:
            lost = NodeStatus(state="lost", why="its status was removed from the broker")
            course.live.node_status(node, lost, self._desk.roster, now)

    def _offer(self, node: NodeId, offer: Offer, course: Run | None, now: float) -> None:
        self._tap(TopicKind.NODE_OFFER, node, offer)
        if course is not None and course.stage == "building":
            return
        live = course.live if course is not None else None
        if live is not None and (offer.run, offer.round) == (live.parts.run, live.round.number):
            live.collection.offered(node, offer, now)
            return
        if self._desk.journal.counted(offer.run, offer.round, node):
            # Its first receipt was lost on the way.
            self._desk.outlet.send(receipt(offer, "duplicate"), node)
        else:
            why = f"round {offer.round} of run {offer.run} is over"
            self._desk.outlet.send(receipt(offer, "closed", why), node)

    def _asked(self, node: NodeId, ask: Ask, course: Run | None) -> None:
        self._tap(TopicKind.NODE_ASK, node, ask)
        off = abs(ask.clock - self._desk.wall()) if ask.clock is not None else 0.0
        if off > _CLOCK_OFF_S:
            self._complaints.once(
                "a wrong clock",
                node,
                f"node {node}: its clock is {off / 86400:.1f} days off; rounds do not mind, but TLS and logs "
                "do: check its time synchronisation (timedatectl)",
            )
        notice = course.notice(node) if course is not None else Notice()
        if notice is not None:  # else the announcement that follows is the answer
            self._desk.outlet.send(notice, node)

    def _other_coordinator(self, other: CoordinatorStatus, *, retained: bool) -> None:
        if retained or other.epoch == self._desk.epoch:
            return
        if other.state == "online":
            log.error(
                "another coordinator (epoch=%s) serves the federation %r on this broker: stop one of them, "
                "or give one another `federation`",
                other.epoch,
                self._desk.settings.federation,
            )
        else:
            self._here()
