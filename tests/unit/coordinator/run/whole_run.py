"""A run with its real parts, a clock that the test moves, and nodes that are the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.coordinator.round.collecting import (
    MANIFEST,
    START,
    WaitingWorker,
    offer_of,
    resources_of,
    update_of,
)
from tests.unit.coordinator.round.running import status

from apiary.blobs import BlobStore
from apiary.bus.bus import Received
from apiary.learn.manifest import Manifest
from apiary.learn.metrics import Evaluation
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import NodeId, blob
from apiary.wire.chunks import CHUNK_BYTES, digest_of, encode
from apiary.wire.messages import BlobRef, Notice
from apiary.wire.topics import TopicKind, Topics
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.run import Run
from apiary_coordinator.worker import Lane


class Builder:
    """A model that is always as good as it says."""

    def __init__(self, blobs: BlobStore):
        self.blobs = blobs
        self.ancestor: Ancestor | None = None

    def labels(self) -> tuple[str, ...]:
        return ("a", "b")

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        return ExportedModel(
            labels=("a", "b"),
            manifest=self._keep(MANIFEST.encode()),
            trainer=None,
            base=None,
            initial=self._keep(blob.encode(START)),
            ancestor=self.ancestor,
        )

    def manifest(self, exported: ExportedModel) -> Manifest:
        return MANIFEST

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        return Evaluation(0.625, 0.5, 100, ("a", "b"), {}, ((1, 0), (0, 1)))

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        return {}

    def _keep(self, data: bytes) -> BlobRef:
        return BlobRef(digest=self.blobs.put(data), bytes=len(data))


class Bench:
    """Run `r` of three nodes; `now` is the clock's."""

    def __init__(
        self, folder: Path, *, ancestor: Ancestor | None = None, stop: str | None = None, **run: Any
    ):
        self.now = 100.0
        self.folder = folder
        self.journal = Journal(folder / "state")
        self.journal.open_run("r", 50.0, "{}")
        self.worker = WaitingWorker()
        self.resources, self._nodes = resources_of(folder, self.worker, self.journal, lambda: self.now)
        self.builder = Builder(self.resources.storage.blobs)
        self.builder.ancestor = ancestor
        self.roster = Roster()
        settings = Settings.model_validate(
            {
                "run": {"min_nodes": 3, "settle_s": 4, "rounds": 2, **run},
                "coordinator": {"state_dir": folder / "state", "runs_dir": folder / "runs", "sync": False},
            }
        )
        self.after: list[Path] = []
        self.run = Run(
            Assignment("r", 50.0, settings, self.builder, stop=stop),
            self.resources,
            Lane(),
            roster=self.roster,
            epoch="e1",
            after_run=self.after.append,
        )

    def come(self, *nodes: str) -> None:
        for node in nodes:
            self.roster.update(NodeId(node), status(), self.now)
            self.run.newcomer(NodeId(node), self.now)

    def work(self) -> None:
        while self.worker.jobs:
            self.worker.step()

    def ticks(self, seconds: float, each: Callable[[], object] = lambda: None) -> None:
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            self.resources.outgoing.bus.poll(0)
            self.run.tick()
            each()

    @property
    def stage(self) -> str:
        return self.run.stage

    def invited(self) -> list[str]:
        found = []
        for event in self._nodes.poll(0):
            assert isinstance(event, Received)
            topic = Topics().parse(event.topic)
            if topic.kind is TopicKind.NODE_NOTICE and Notice.decode(event.payload, who="test").invited:
                found.append(str(topic.node))
        return found

    def opened(self) -> Bench:
        """With its first round open."""
        self.run.start()
        self.work()
        self.come("a", "b", "c")
        self.ticks(1)
        return self

    def history(self) -> list[dict[str, Any]]:
        lines = (self.folder / "runs" / "r" / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def send(one: Bench, node: str) -> None:
    """A node offers and sends a good update of the open round."""
    runner = one.run.runner
    assert runner is not None
    number = runner.round.number
    about = {"run": "r", "round": number, "node": node, "samples": 10}
    document = blob.encode(update_of(node), about=about)
    digest = digest_of(document)
    offer = offer_of(document).model_copy(update={"round": number})
    runner.collector.offered(NodeId(node), offer, one.now)
    for i in (0, 1):
        part = document[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]
        runner.collector.chunk(NodeId(node), digest, i, encode(digest, i, part), one.now)
