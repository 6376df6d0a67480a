"""A round's collector with a real journal, spool and bus; the worker waits until the test has it work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tests.stand_ins.memory_bus import MemoryBroker, MemoryBus

from apiary.blobs import BlobStore
from apiary.bus.bus import Received
from apiary.bus.outlet import Outlet
from apiary.clocks import Clocks
from apiary.errors import StoreError
from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.learn.metrics import Evaluation
from apiary.tensors import Shapes, Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.chunks import count, digest_of, encode, span
from apiary.wire.messages import BlobRef, Bounds, Grant, Offer, Plan, Receipt, TrainMetrics
from apiary.wire.topics import TopicKind, Topics
from apiary_coordinator.journal import AcceptedRow, Journal
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.resources import Outgoing, Resources, Storage
from apiary_coordinator.round import state as table
from apiary_coordinator.round.collector import Collector, spool_path
from apiary_coordinator.round.server_state import RoundTerms
from apiary_coordinator.round.state import Round
from apiary_coordinator.updates.exact_sum import grid_bits
from apiary_coordinator.updates.model_server import ModelServer
from apiary_coordinator.updates.spool import Spool
from apiary_coordinator.updates.uploads import Uploads
from apiary_coordinator.worker import Job, Then

SHAPES: Shapes = {"a": (40_000,)}
"""An update has two chunks."""
REF = BlobRef(digest=Digest("ab" * 32), bytes=100)
EXPORTED = ExportedModel(labels=("a", "b"), manifest=REF, trainer=REF, base=None, initial=REF)
MANIFEST = Manifest(
    recipe="fake",
    input=PictureInput(height=8, width=8, channels=1),
    labels=("a", "b"),
    tensors=(Tensor(name="a", shape=SHAPES["a"], argument="p0"),),
    batch_size=16,
    optimizer="adam",
)
START = Weights({"a": np.full(SHAPES["a"], 0.5, np.float32)})
IDLE_S = 3.0
MOST = 100
"""What an update weighs at most."""


def update_of(node: str, value: float = 1.0) -> Weights:
    """As many numbers as the model has: the node's own, times `value`."""
    at = sum(node.encode())
    return Weights({"a": np.linspace(0, value * at / 1000, SHAPES["a"][0], dtype=np.float32)})


def document_of(node: str, value: float = 1.0, samples: int = 10) -> bytes:
    """An update as its node sends it."""
    about = {"run": "r", "round": 1, "node": node, "samples": samples}
    return blob.encode(update_of(node, value), about=about)


def offer_of(document: bytes, samples: int = 10, **more: object) -> Offer:
    """Its offer."""
    ref = BlobRef(digest=digest_of(document), bytes=len(document))
    fields = {"run": "r", "round": 1, "update": ref, "codec": "raw_f32", "samples": samples, **more}
    return Offer.model_validate({**fields, "metrics": TrainMetrics(loss=1.0)})


class Judge:
    """Evaluates models by a loss; notes the last numbers of those it saw."""

    def __init__(self, loss: Callable[[Weights], float]):
        self.loss = loss
        self.seen: list[float] = []

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        assert exported is EXPORTED
        self.seen.append(float(weights["a"][-1]))
        return Evaluation(0.5, self.loss(weights), 100, ("a", "b"), {}, ((1, 0), (0, 1)))

    def labels(self) -> tuple[str, ...]:
        raise NotImplementedError

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        raise NotImplementedError

    def manifest(self, exported: ExportedModel) -> Manifest:
        raise NotImplementedError

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        raise NotImplementedError


class WaitingWorker:
    """A job queue that runs a job when the test says so, and hands its value to the loop at once."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Job, Then]] = deque()

    def submit(self, job: Job, then: Then) -> None:
        self.jobs.append((job, then))

    def step(self) -> None:
        """Run the next job. What the disk refused of what follows it is done again by the next step."""
        job, then = self.jobs.popleft()
        value = job()
        try:
            then(value)
        except StoreError:
            self.jobs.appendleft((lambda: value, then))
            raise


def resources_of(
    folder: Path, worker: WaitingWorker, journal: Journal, clock: Callable[[], float]
) -> tuple[Resources, MemoryBus]:
    """What a round works with, and a bus that gets all that is sent to nodes alone."""
    broker, topics = MemoryBroker(), Topics()
    bus, nodes = broker.bus("coordinator"), broker.bus("nodes")
    for kind in (TopicKind.NODE_GRANT, TopicKind.NODE_RECEIPT, TopicKind.NODE_NOTICE):
        nodes.subscribe(topics.pattern(kind))
    for each in (bus, nodes):
        each.poll(0)
    blobs = BlobStore(folder / "blobs")
    outgoing = Outgoing(bus, Outlet(bus, topics), ModelServer(topics, blobs, 0.1))
    return Resources(Clocks(clock, clock), Storage(journal, blobs), outgoing, worker), nodes


class Collecting:
    """Round 1 of run `r`; the collector's `CollectingRound`, and what its nodes are sent."""

    def __init__(
        self,
        folder: Path,
        cohort: str = "abcd",
        *,
        goal: int | None = None,
        max_uploads: int = 4,
        spool: Spool | None = None,
        journal: Journal | None = None,
    ):
        nodes = tuple(NodeId(n) for n in cohort)
        self.round = Round("r", 1, nodes, (), goal or len(nodes), 1, deadline_at=1e9)
        self.now = 0.0
        self.elapsed_s = 1.5
        self.folder = folder
        self.capped_at: list[tuple[str, int]] = []
        self.refuses: set[str] = set()
        """Whose acceptance the disk refuses to the round."""
        self.journal = journal or Journal(folder / "state")
        self.worker = WaitingWorker()
        self.resources, self._nodes = resources_of(folder, self.worker, self.journal, lambda: self.now)
        self._topics = Topics()
        bounds = Bounds(max_samples=MOST, max_bytes=blob.most_bytes(SHAPES, "raw_f32"))
        self.terms = RoundTerms(Plan(codec="raw_f32"), bounds, 60.0, SHAPES, grid_bits(bounds, 20))
        self.path = spool_path(folder, "r", 1)
        self.collector = Collector(
            self.terms,
            self,
            self.resources,
            spool=spool or Spool(self.path, bounds.max_bytes, sync=False),
            uploads=Uploads(max_uploads, IDLE_S),
            summed=True,
        )

    # -- as the round that updates are collected for

    def accepted(self, row: AcceptedRow) -> None:
        if row.node in self.refuses:
            self.refuses.discard(row.node)
            raise StoreError("the disk is full")
        self.round, _ = table.handle(self.round, table.UpdateAccepted(row.node, row.contributor), self.now)

    def rejected(self, node: NodeId, why: str) -> None:
        self.round, _ = table.handle(self.round, table.UpdateRejected(node, why), self.now)

    def capped(self, node: NodeId, samples: int) -> None:
        self.capped_at.append((node, samples))

    # -- as the nodes

    def offer(self, document: bytes, node: str = "a", **more: object) -> Offer:
        """A node offers an update."""
        samples = blob.decode(document, who="test").about["samples"]
        made = offer_of(document, **{"samples": samples, **more})
        self.collector.offered(NodeId(node), made, self.now)
        return made

    def send(
        self,
        document: bytes,
        node: str = "a",
        *,
        only: tuple[int, ...] = (0, 1),
        digest: Digest | None = None,
    ) -> None:
        """A node sends chunks of an update, as those of another where `digest` names that."""
        digest = digest or digest_of(document)
        assert count(len(document)) == 2
        for i in only:
            start, end = span(i, len(document))
            self.chunk(digest, i, encode(digest, i, document[start:end]), node)

    def chunk(self, digest: Digest, index: int, payload: bytes, node: str = "a") -> None:
        """One chunk comes in."""
        self.collector.chunk(NodeId(node), digest, index, payload, self.now)

    def counted(self, node: str, value: float = 1.0, samples: int = 10) -> bytes:
        """A node offers and sends a good update, which then counts."""
        document = document_of(node, value, samples)
        self.offer(document, node)
        self.send(document, node)
        self.work()
        return document

    # -- as the loop

    def work(self) -> None:
        """Run all of the worker's jobs, those too that come of others."""
        while self.worker.jobs:
            self.worker.step()

    def sent(self) -> list[tuple[str, Grant | Receipt]]:
        """What the nodes were sent since the last call."""
        found: list[tuple[str, Grant | Receipt]] = []
        for event in self._nodes.poll(0):
            assert isinstance(event, Received)
            topic = self._topics.parse(event.topic)
            what = Grant if topic.kind is TopicKind.NODE_GRANT else Receipt
            found.append((str(topic.node), what.decode(event.payload, who="test")))
        return found

    def receipts(self) -> list[tuple[str, str, str | None]]:
        """Receipts since the last call: node, state, reason."""
        return [(n, m.state, m.why) for n, m in self.sent() if isinstance(m, Receipt)]

    def grants(self) -> list[tuple[str, list[tuple[int, int]]]]:
        """Grants since the last call: node, and the chunks that are missing."""
        return [(n, list(m.missing)) for n, m in self.sent() if isinstance(m, Grant)]

    def mean(self) -> Mapping[str, bytes]:
        """The bits of the mean so far."""
        return {name: tensor.tobytes() for name, tensor in self.collector.counted.mean().items()}

    def over(self) -> None:
        """The round takes no more updates."""
        self.round = replace(self.round, phase=table.Phase.AGGREGATING)

    def close(self) -> None:
        self.journal.close()
