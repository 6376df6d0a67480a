"""A round in progress with its real runner, collector and journal; the test is its run and its nodes."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from tests.unit.coordinator.round.collecting import (
    EXPORTED,
    MANIFEST,
    REF,
    START,
    Judge,
    WaitingWorker,
    document_of,
    offer_of,
    resources_of,
)

from apiary.bus.bus import Received
from apiary.errors import StoreError
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import NodeId
from apiary.wire.chunks import CHUNK_BYTES, digest_of, encode
from apiary.wire.messages import Grant, NodeStatus, Notice, Receipt
from apiary.wire.topics import TopicKind, Topics
from apiary_coordinator.fleet.rests import Rests
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.journal import Journal
from apiary_coordinator.round.runner import RoundContext, RoundRunner
from apiary_coordinator.round.server_state import ClosedRound, ServerState
from apiary_coordinator.run.plan_schedule import plan_of

NEEDED = ["codec.raw_f32"]
_MESSAGES: dict[TopicKind, type[Grant | Receipt | Notice]] = {
    TopicKind.NODE_GRANT: Grant,
    TopicKind.NODE_RECEIPT: Receipt,
    TopicKind.NODE_NOTICE: Notice,
}


def status(state: str = "ready", **more: Any) -> NodeStatus:
    """A node that is fit, with 30 samples."""
    fields = {"state": state, "samples": 30, "labels": {"a": 20, "b": 10}, "runtimes": ["fake", "other"]}
    return NodeStatus.model_validate({**fields, "capabilities": NEEDED, **more})


def nearly_as_good(weights: Weights) -> float:
    """A loss that grows with the way from the start."""
    return (weights - START).norm() / 100


class Running:
    """Round 1 of run `r`; as its owner it notes what the round has it do."""

    def __init__(
        self,
        folder: Path,
        nodes: str = "abcd",
        *,
        loss_before: float | None = None,
        journal: Journal | None = None,
        coordinator: dict[str, Any] | None = None,
        **run: Any,
    ):
        self.now = 100.0
        self.announced: list[str] = []
        self.invited: list[str] = []
        self.capped_at: list[tuple[str, int, int, int]] = []
        self.closed: list[ClosedRound] = []
        self.refuses = 0
        """So many ends of the round are refused, as by a full disk."""
        self.journal = journal or Journal(folder / "state")
        self.worker = WaitingWorker()
        self.resources, self.nodes = resources_of(folder, self.worker, self.journal, lambda: self.now)
        self.roster = Roster()
        for node in nodes:
            self.roster.update(NodeId(node), status(), 0.0)
        self.settings = Settings.model_validate(
            {
                "run": {"min_nodes": 1, "leave_out_gain": 0, "seed": 7, **run},
                "coordinator": {
                    "state_dir": folder / "state",
                    "max_uploads": 4,
                    "sync": False,
                    **(coordinator or {}),
                },
            }
        )
        self.context = RoundContext(
            "r",
            self.settings,
            Judge(nearly_as_good),
            ServerState(EXPORTED, MANIFEST, START, REF, None),
            self.resources,
            self,
            Rests(),
            loss_before,
        )
        self._runner: RoundRunner | None = None

    @property
    def runner(self) -> RoundRunner:
        assert self._runner is not None
        return self._runner

    # -- as the run that the round belongs to

    def announce(self) -> None:
        self.announced.append(self.runner.round.phase.value if self._runner else "?")

    def invite(self, node: NodeId) -> None:
        self.invited.append(node)

    def capped(self, node: NodeId, samples: int, cap: int, *, reported: int) -> None:
        self.capped_at.append((node, samples, cap, reported))

    def round_closed(self, closed: ClosedRound) -> None:
        if self.refuses:
            self.refuses -= 1
            raise StoreError("the disk is full")
        self.closed.append(closed)

    def open(self, *, last_norm: float | None = None, recent: list[list[float]] | None = None) -> Running:
        """Open the round with all nodes that are known."""
        self._runner = RoundRunner.open(
            self.context,
            sorted(self.roster.nodes),
            plan_of(self.context.settings.run, 0),
            number=1,
            recent=recent or [],
            last_norm=last_norm,
            roster=self.roster,
            now=self.now,
        )
        self.runner.begin(self.now)
        return self

    def resume(self, whole: Callable[[NodeId], bool] = lambda _: True) -> Running:
        """Resume it as the journal has it; `whole` are the nodes whose updates the spool gives back."""
        (row,) = self.journal.rounds("r")
        rows = self.journal.accepted("r", 1)
        kept: Container[NodeId] = {r.node for r in rows if whole(r.node)}
        self._runner = RoundRunner.resume(self.context, row, rows, kept, self.now)
        return self

    def leave(self) -> None:
        """As the end of the process: what was not done by the worker is not done."""
        self.runner.collector.close(remove=False)
        self.journal.close()

    # -- as the loop and the nodes

    def work(self) -> None:
        """Run all of the worker's jobs, those too that come of others."""
        while self.worker.jobs:
            self.worker.step()

    def send(self, node: str, value: float = 1.0, samples: int = 10) -> None:
        """A node offers and sends a good update; the worker has it then."""
        document = document_of(node, value, samples)
        digest = digest_of(document)
        self.runner.collector.offered(NodeId(node), offer_of(document, samples), self.now)
        for i in (0, 1):
            part = document[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]
            self.runner.collector.chunk(NodeId(node), digest, i, encode(digest, i, part), self.now)

    def says(self, node: str, told: NodeStatus) -> None:
        """A node's status comes in."""
        self.roster.update(NodeId(node), told, self.now)
        self.runner.node_status(NodeId(node), told, self.roster, self.now)

    def sent(self) -> list[tuple[str, Grant | Receipt | Notice]]:
        """What the nodes were sent since the last call."""
        found: list[tuple[str, Grant | Receipt | Notice]] = []
        for event in self.nodes.poll(0):
            assert isinstance(event, Received)
            topic = Topics().parse(event.topic)
            found.append((str(topic.node), _MESSAGES[topic.kind].decode(event.payload, who="test")))
        return found

    def opened(self) -> dict[str, Any]:
        """The open round as journaled."""
        return self.journal.rounds("r")[0].opened
