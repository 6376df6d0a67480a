"""What a watcher knows of a run from its control messages, and the lines to print about it. Pure."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from apiary.wire import NodeId
from apiary.wire.messages import (
    Announcement,
    CoordinatorStatus,
    Message,
    NodeHealth,
    NodeRelease,
    NodeStatus,
    Notice,
    Progress,
    RoundResult,
)
from apiary.wire.topics import TopicKind

MAX_RESULTS: Final = 10_000


@dataclass(slots=True)
class NodeView:
    """One node as last heard of."""

    status: NodeStatus | None = None
    progress: Progress | None = None
    health: NodeHealth | None = None
    release: NodeRelease | None = None

    @property
    def doing(self) -> str:
        """A few words on what it is at."""
        if self.status is None:
            return "?"
        if self.status.state == "training" and self.progress is not None:
            return f"epoch {self.progress.epoch}/{self.progress.epochs}"
        return self.status.state


@dataclass(slots=True)
class RunView:
    """Fed with every control message in the order seen; `take` gives the lines that are new.

    `alone`: nothing else shows whether the coordinator is there and when a run is over.
    """

    alone: bool = False
    coordinator: str | None = None
    """Its state, once heard."""
    version: str = ""
    """The coordinator's, once heard."""
    run: str | None = None
    round: Announcement | None = None
    results: list[RoundResult] = field(default_factory=list)
    nodes: defaultdict[NodeId, NodeView] = field(default_factory=lambda: defaultdict(NodeView))
    finished: bool = False

    def take(self, kind: TopicKind, node: NodeId | None, message: Message) -> list[str]:
        """Take a message in; what a person should read, a line each."""
        match message:
            case NodeStatus() if node is not None:
                return self._status(node, message)
            case Progress() if node is not None:
                self.nodes[node].progress = message
            case NodeHealth() if node is not None:
                self.nodes[node].health = message
            case NodeRelease() if node is not None:
                self.nodes[node].release = message
            case Announcement():
                return self._announced(message)
            case Notice(announcement=Announcement() as announcement):
                return self._announced(announcement)
            case RoundResult():
                return self._result(message)
            case CoordinatorStatus():
                return self._coordinator(message)
        return []

    @property
    def best(self) -> RoundResult | None:
        """The best closed round of the run so far."""
        closed = [r for r in self.results if r.accuracy is not None and self.run in (None, r.run)]
        return max(closed, key=lambda r: (r.accuracy or 0, -(r.loss or 0), -r.round), default=None)

    def _status(self, node: NodeId, status: NodeStatus) -> list[str]:
        view = self.nodes[node]
        before = view.status.state if view.status else None
        view.status = status
        if status.state != "training":
            view.progress = None
        if before == status.state:
            return []
        if before in (None, "lost") and status.state == "ready":
            return [f"{node} is here: {status.samples or 0} samples ({_labels(status)})"]
        if status.state in ("lost", "paused"):
            return [f"{node} {status.state}" + (f": {status.why}" if status.why else "")]
        return []

    def _coordinator(self, status: CoordinatorStatus) -> list[str]:
        before, self.coordinator = self.coordinator, status.state
        self.version = status.version or self.version  # its last will has one, an older one's may not
        self.run = status.run or self.run
        news = status.state != before and (before is not None or status.state == "offline")
        return [f"the coordinator is {status.state}"] if news and self.alone else []

    def _announced(self, new: Announcement) -> list[str]:
        before = self.round
        self.run, self.round = new.run, new
        was_finished = self.finished and before is not None and before.run == new.run
        self.finished = new.state == "finished"
        if self.finished:
            over = f"run {new.run} is over after round {new.round}/{new.rounds}"
            return [over] if self.alone and not was_finished else []
        if before is None or (before.run, before.round) != (new.run, new.round):
            return [f"round {new.round}/{new.rounds} opened for {new.cohort_size} nodes"]
        return []

    def _result(self, result: RoundResult) -> list[str]:
        if any((r.run, r.round) == (result.run, result.round) for r in self.results):
            return []
        self.results.append(result)
        del self.results[:-MAX_RESULTS]
        if result.state == "failed":
            return [f"round {result.round} failed: {result.why}"]
        lines = [
            f"round {result.round} closed: accuracy {result.accuracy or 0:.1%}, loss {result.loss or 0:.3f}, "
            f"{result.n_contributors} updates, {result.seconds:.1f} s"
        ]
        lines += [f"  {node}: left out: {why}" for node, why in (result.left_out or {}).items()]
        lines += [f"  {node}: update rejected: {why}" for node, why in result.rejected.items()]
        lines += [f"  {node}: {why}" for node, why in result.missing.items()]
        more = result.n_rejected + result.n_missing - len(result.rejected) - len(result.missing)
        return [*lines, f"  and {more} more without a counted update"] if more > 0 else lines


def _labels(status: NodeStatus) -> str:
    labels = status.labels or {}
    if len(labels) > 6:
        return f"{len(labels)} labels"
    return ", ".join(f"{label}: {count}" for label, count in labels.items()) or "no labels"
