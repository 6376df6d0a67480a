"""The real coordinator and real nodes on the in-memory bus, with real training of the smallest model.

Beside `tests/fleet/harness.py`, whose training is made up: here a node reads its folder and trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.stand_ins.inline_worker import InlineWorker
from tests.stand_ins.memory_bus import MemoryBroker
from tests.stand_ins.regression import RegressionBuilder, RegressionRuntime

from apiary.blobs import BlobStore
from apiary.clocks import Clocks
from apiary.learn.cache import ArrayCache
from apiary.learn.manifest import Manifest
from apiary.settings import Settings
from apiary.wire import NodeId, blob
from apiary.wire.chunks import digest_of
from apiary.wire.messages import TrainMetrics
from apiary_coordinator import app
from apiary_coordinator.journal import Journal
from apiary_coordinator.resources import Platform, Storage
from apiary_coordinator.service import will as coordinator_will
from apiary_edge.service import Edge, will
from apiary_edge.status.presence import NodeFacts
from apiary_edge.stores import NodeStores
from apiary_edge.training import pictures
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.training.update import make_update
from apiary_edge.transfer.outbox import Outbox

TICK_S = 0.1


class TrainingHere:
    """The child's steps on the node's own folder, in this process."""

    def __init__(self) -> None:
        self._job: TrainJob | None = None

    def start(self, job: TrainJob) -> None:
        self._job = job

    def collect(self) -> list[TrainingEvent]:
        job, self._job = self._job, None
        if job is None:
            return []
        manifest, runtime = Manifest.decode(job.manifest.read_bytes()), RegressionRuntime()
        found = pictures.find(job, manifest.labels, manifest.input)
        cache = ArrayCache(job.cache_dir, job.cache_mb)
        data = pictures.load(found, manifest, runtime, cache, base=None, base_digest=None)
        document, fit = make_update(
            runtime.open_trainer(manifest, None),
            manifest,
            job.plan,
            data,
            blob.decode(job.model.read_bytes(), who="test").weights,
            run=job.run,
            round_=job.round,
            node=job.node,
            max_norm=job.max_norm,
        )
        job.out.mkdir(parents=True, exist_ok=True)
        (job.out / "update.blob").write_bytes(document)
        return [
            TrainingEvent(
                kind="done",
                digest=digest_of(document),
                bytes=len(document),
                samples=fit.samples,
                metrics=TrainMetrics(loss=fit.loss, accuracy=fit.accuracy, seconds=1.0, epochs=fit.epochs),
            )
        ]

    def stop(self) -> None:
        self._job = None

    def freeze(self) -> None:
        raise AssertionError("nothing pauses it")

    def thaw(self) -> None:
        raise AssertionError("nothing paused it")

    def resident(self) -> int:
        return 0


class SmallFederation:
    """A coordinator with these settings, and a node for each folder, named after it."""

    def __init__(self, settings: Settings, folders: Sequence[Path]):
        self._broker = MemoryBroker(seed=1, latency_s=0.01)
        state = settings.coordinator.state_dir
        self._nodes = [self._node(settings, folder, state.parent / folder.name) for folder in folders]
        self._journal = Journal(state)
        self._coordinator = app.build(
            settings,
            Platform(
                self._broker.bus("coordinator", coordinator_will(settings.topics, "epoch")),
                InlineWorker(),
                self._clocks(),
                "epoch",
            ),
            Storage(self._journal, BlobStore(state / "blobs")),
            one=self._journal.open_run("run", 0.0, settings.run.model_dump_json()),
            builders=RegressionBuilder,
        )

    def run(self, seconds: float = 600) -> dict[str, Any]:
        """Turn until the run is over; its summary."""
        self._coordinator.start()
        for _ in range(round(seconds / TICK_S)):
            self._coordinator.step(0)
            for node in self._nodes:
                node.step(0)
            self._broker.now += TICK_S
            if self._coordinator.over:
                assert self._coordinator.host.current is not None
                self._journal.close()
                return self._coordinator.host.current.summary
        raise AssertionError(f"not over after {seconds} s")

    def _clocks(self) -> Clocks:
        return Clocks(lambda: self._broker.now, lambda: self._broker.now)

    def _node(self, settings: Settings, pictures_: Path, state: Path) -> Edge:
        edge = settings.edge.model_copy(
            update={"node_id": pictures_.name, "data_dir": pictures_, "state_dir": state}
        )
        node = Edge(
            settings.model_copy(update={"edge": edge}),
            bus=self._broker.bus(pictures_.name, will(settings.topics, NodeId(pictures_.name), "s")),
            stores=NodeStores(BlobStore(state / "blobs", 2**28), Outbox(state / "outbox")),
            training=TrainingHere(),
            clocks=self._clocks(),
            facts=NodeFacts(f"s-{pictures_.name}", ["regression"]),
        )
        node.start()
        return node
