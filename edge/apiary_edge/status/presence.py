"""What a node says of itself: its status with labels and reasons, and a twin that speaks under its name."""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from apiary import __version__
from apiary.bus.bus import Will
from apiary.errors import DataError
from apiary.settings import EdgeSettings
from apiary.tags import Tags
from apiary.wire import NodeId, capabilities
from apiary.wire.messages import NodeState, NodeStatus
from apiary.wire.topics import TopicKind, Topics
from apiary_edge.samples.store import SampleStore
from apiary_edge.training import census
from apiary_edge.training.census import Census
from apiary_edge.training.session import Session, SessionState
from apiary_edge.transfer.channel import NodeChannel

log = logging.getLogger(__name__)

COUNT_EVERY_S: Final = 60.0
LABELLED_S: Final = 2.0
"""An owner who labels should see the node take notice: then it counts again, but not at each label."""
_GREETINGS_A_SECOND: Final = 100
_LONGEST_GREETING_S: Final = 60.0
_TWIN_EVERY_S: Final = 60.0
_PICTURES: Final = "pictures"
_STATES: Final[dict[SessionState, NodeState]] = {
    SessionState.IDLE: "ready",
    SessionState.FETCHING: "training",
    SessionState.TRAINING: "training",
    SessionState.SENDING: "sending",
}


class PauseReasons:
    """Reasons by who gave them; the node trains while there is none."""

    def __init__(self) -> None:
        self._why: dict[str, str] = {}

    def set(self, who: str, why: str | None) -> bool:
        """Give, change or take back (None) a reason; whether that changed anything."""
        if self._why.get(who) == why:
            return False
        if why is None:
            del self._why[who]
        else:
            self._why[who] = why
        return True

    @property
    def why(self) -> str | None:
        """All of them in a line, or None."""
        return "; ".join(self._why.values()) or None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node's status holds and does not change while the service runs; `instance` names this start."""

    instance: str
    runtimes: list[str]
    memory_mb: int | None = None


class Presence:
    """Publishes the node's status whenever something in it is new; `more` gives the features' fields."""

    def __init__(
        self,
        settings: EdgeSettings,
        channel: NodeChannel,
        facts: NodeFacts,
        store: SampleStore | None,
        more: Callable[[], Mapping[str, Any]],
    ):
        self.pause_reasons = PauseReasons()
        self.declined: tuple[str, int, str] | None = None
        """The run, round and reason of what was given up last; None once the node takes part again."""
        self._node = channel.node
        self._data_dir = settings.data_dir
        self._join_labels = settings.join_labels
        self._tags = settings.tags
        self._channel = channel
        self._facts = facts
        self._store = store
        self._more = more
        self._repeat_s = repeat_s(settings)
        self._census = Census()
        self._model_labels: tuple[str, ...] = ()
        self._counted_at = -math.inf
        self._version = 0
        self._said: tuple[object, ...] | None = None
        self._twin_said_at = -math.inf

    @property
    def samples(self) -> int:
        """Pictures that may be trained, as counted last."""
        return sum(self._census.labels.values())

    def begin(self, now: float) -> None:
        """Count the pictures. Raises DataError where there are none to come either."""
        self._take_census()
        self._counted_at = now
        if len(self._census.labels) == 1:
            log.warning(
                "node=%s all pictures have the label %r: this node trains, but teaches one class only",
                self._node,
                next(iter(self._census.labels)),
            )

    def know(self, labels: Sequence[str]) -> None:
        """The labels of the federation's model, where this node takes spellings of theirs for them."""
        if self._join_labels and tuple(labels) != self._model_labels:
            self._model_labels = tuple(labels)
            self._counted_at = -math.inf

    def tick(self, now: float) -> bool:
        """Count again from time to time; whether that was due. Without pictures the node pauses."""
        past = now - self._counted_at
        if past < LABELLED_S or (past < COUNT_EVERY_S and not self._store_changed()):
            return False
        self._counted_at = now
        try:
            self._take_census()
            self.pause_reasons.set(_PICTURES, None)
        except DataError as e:
            self.pause_reasons.set(_PICTURES, str(e))
        return True

    def say(self, session: Session) -> None:
        """Publish the status where it differs from what was sent last. Called after every event."""
        announcement = session.round
        run, number = (announcement.run, announcement.round) if announcement is not None else (None, None)
        if session.state is not SessionState.IDLE:
            # It takes part again: what it declined before is no longer news.
            self.declined = None
        held = self.pause_reasons.why
        counted = self._census
        why = held
        if self.declined is not None:
            run, number, declined_why = self.declined
            why = why or declined_why
        more = dict(self._more())
        note = more.pop("why", None)
        why = why or note
        state = _STATES[session.state]
        says = (state, why, run, number, counted.labels, counted.waiting, self.declined, held, more)
        if says == self._said:
            return
        self._said = says
        status = NodeStatus(
            # What is trained goes out whatever holds the next training: it costs next to nothing.
            state="paused" if held and session.state is not SessionState.SENDING else state,
            why=why[:500] if why else None,
            run=run,
            round=number,
            samples=self.samples,
            labels=counted.labels,
            waiting=counted.waiting,
            declined=True if self.declined is not None else None,
            tags=self._tags,
            runtimes=self._facts.runtimes,
            memory_mb=self._facts.memory_mb,
            version=__version__,
            capabilities=capabilities.of_this_version(),
            repeat_s=self._repeat_s,
            session=self._facts.instance,
            **more,
        )
        self._channel.send(status)

    def heard(self, status: NodeStatus, *, retained: bool, now: float, first_connect: bool) -> None:
        """Our own status topic: what another process with our id sent there, or our own will, too late.

        At the first connect what is retained there may be ours from before a restart; later it is not.
        """
        if status.state == "lost":
            self._channel.outlet.restore()
        ours = status.session == self._facts.instance or (retained and first_connect)
        # `apiary pki revoke` says lost for whom it shut out, without a session: no other process lives.
        ours = ours or (status.state == "lost" and status.session is None)
        if not ours and now - self._twin_said_at >= _TWIN_EVERY_S:
            self._twin_said_at = now
            log.error(
                "node=%s another process uses this node id: give one of them another edge.node_id", self._node
            )

    def _take_census(self) -> None:
        """Count, and log what is new about how the folder is read."""
        before = self._census
        self._census = census.take(
            self._data_dir,
            self._store,
            join_labels=self._join_labels,
            known=self._model_labels,
            before=before,
        )
        for line in self._census.understood:
            if line not in before.understood:
                log.info("node=%s pictures: %s", self._node, line)
        for line in self._census.left_out:
            if line not in before.left_out:
                log.warning("node=%s pictures: %s", self._node, line)

    def _store_changed(self) -> bool:
        if self._store is None:
            return False
        before, self._version = self._version, self._store.version()
        return before != self._version


def repeat_s(settings: EdgeSettings) -> float:
    """How often a node repeats what it has published, in seconds: `edge.refresh_s` and up to a fifth more.

    Spread by name, so that a fleet that was started together does not speak together.
    """
    return round(settings.refresh_s * (1 + sum(settings.node_id.encode()) % 20 / 100), 3)


def greeting_s(node: NodeId, epoch: str, nodes: int) -> float:
    """How long a node waits before it greets a coordinator of a new epoch that knows `nodes` nodes.

    All of them see the epoch at once, and each sends four messages: a broker's queue of 1,000 would overflow.
    """
    span_s = min(_LONGEST_GREETING_S, nodes / _GREETINGS_A_SECOND)
    place = int(hashlib.sha256(f"{node}/{epoch}".encode()).hexdigest()[:8], 16) / 16**8
    return span_s * place


def lost(instance: str, why: str, tags: Tags | None = None) -> NodeStatus:
    """What a node's status says once it is gone."""
    return NodeStatus(state="lost", why=why, version=__version__, session=instance, tags=dict(tags or {}))


def will(topics: Topics, node: NodeId, instance: str, tags: Tags | None = None) -> Will:
    """What the broker says when the node vanishes."""
    status = lost(instance, "connection lost", tags)
    return Will(topics.build(TopicKind.NODE_STATUS, node=node), status.encode())
