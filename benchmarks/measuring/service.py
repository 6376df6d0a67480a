"""A real coordinator or a real node in a process of its own, with nothing to train and nothing to judge.

    python -m benchmarks.measuring.service coordinator|node --port P --folder DIR --bytes N --layers L ...

Everything on the way is the product's: services, bus, journal, spool, screening, exact sum, outbox. Only
the model is invented, a node's update is the model itself, and accuracy is a constant.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from benchmarks.measuring.kernel_figures import children, cpu_of, per_round

from apiary.blobs import BlobStore
from apiary.bus.mqtt import MqttBus
from apiary.clocks import Clocks
from apiary.files import write_atomic
from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.learn.metrics import Evaluation
from apiary.process.allocator import tune
from apiary.process.child import die_with_parent
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import NodeId, blob
from apiary.wire.messages import Announcement, BlobRef, Message, RoundResult, TrainMetrics
from apiary.wire.topics import TopicKind
from apiary_coordinator import app
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.resources import Platform, Storage
from apiary_coordinator.service import will as coordinator_will
from apiary_coordinator.worker import ThreadWorker
from apiary_edge.service import RECEIVE_MAXIMUM, Edge
from apiary_edge.service import will as edge_will
from apiary_edge.status.presence import NodeFacts
from apiary_edge.stores import NodeStores
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.transfer.outbox import Outbox

SAMPLES = 20
HEADER_BYTES = 65_536
"""More than the header of the model here takes."""
SCALE = 1e-6
"""The model doubles each round, since an update is the model: this small it stays in bounds for 20 rounds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("role", choices=("coordinator", "node"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--node-id", default="x")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--bytes", type=int, default=14_000_000)
    parser.add_argument("--layers", type=int, default=53)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sync", action="store_true", help="sync the spool to disk before each receipt")
    parser.add_argument("--profile", type=Path, help="write cProfile's figures of the loop there")
    args = parser.parse_args()
    die_with_parent()
    act = coordinator if args.role == "coordinator" else node
    if args.profile is None:
        act(args)
    else:
        import cProfile

        profile = cProfile.Profile()
        try:
            profile.runcall(act, args)
        finally:
            profile.dump_stats(args.profile)
    return 0


class BenchmarkModelBuilder:
    """A model of `layers` equal tensors, and a judge without pictures."""

    def __init__(self, blobs: BlobStore, size: int, layers: int):
        self._blobs = blobs
        self._shapes = {f"layer_{i:02d}/kernel": (size // 4 // layers,) for i in range(layers)}

    def labels(self) -> tuple[str, ...]:
        return ("a", "b")

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        rng = np.random.default_rng(0)
        initial = Weights(
            {n: rng.normal(scale=SCALE, size=s).astype(np.float32) for n, s in self._shapes.items()}
        )
        return ExportedModel(
            labels=("a", "b"),
            manifest=self._keep(self._manifest().encode()),
            trainer=self._keep(b"a trainer" * 1000),
            base=None,
            initial=self._keep(blob.encode(initial)),
        )

    def manifest(self, exported: ExportedModel) -> Manifest:
        return self._manifest()

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        return Evaluation(0.5, 0.5, 0, (), {}, ())

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        return {}

    def _manifest(self) -> Manifest:
        return Manifest(
            recipe="none",
            input=PictureInput(height=8, width=8, channels=1),
            labels=("a", "b"),
            tensors=tuple(Tensor(name=n, shape=s, argument=n) for n, s in self._shapes.items()),
            batch_size=16,
            optimizer="adam",
        )

    def _keep(self, data: bytes) -> BlobRef:
        return BlobRef(digest=self._blobs.put(data), bytes=len(data))


def update_of(model: memoryview, run: str, number: int, node: str) -> tuple[bytes, memoryview]:
    """An update without training: a header of this node's own, and the model's bytes after its header."""
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 20)
    unpacker.feed(model[1:HEADER_BYTES])
    header = unpacker.unpack()
    header["about"] = {"run": run, "round": number, "node": node, "samples": SAMPLES}
    return b"\x92" + msgpack.packb(header), model[1 + unpacker.tell() :]


class NoTraining:
    """Answers at once: the update is the model itself under a new header, on disk as a child leaves it.

    Naming it (one sha256) is part of a real round and measured; adding up gradients is not.
    """

    def __init__(self) -> None:
        self._told: list[TrainingEvent] = []

    def start(self, job: TrainJob) -> None:
        head, body = update_of(memoryview(job.model.read_bytes()), job.run, job.round, job.node)
        name = hashlib.sha256(head)
        name.update(body)
        write_atomic(job.out / "update.blob", [head, body])
        self._told = [
            TrainingEvent(
                kind="done",
                digest=name.hexdigest(),
                bytes=len(head) + len(body),
                samples=SAMPLES,
                metrics=TrainMetrics(loss=0.5),
            )
        ]

    def collect(self) -> list[TrainingEvent]:
        told, self._told = self._told, []
        return told

    def stop(self) -> None:
        self._told = []

    def freeze(self) -> None:
        """It is over before anybody could."""

    def thaw(self) -> None:
        """As `freeze`."""

    def resident(self) -> int:
        """There is no child."""
        return 0


@dataclass(slots=True)
class Stopwatch:
    """When each round was announced, and when its result was; by the wall, beside the coordinator's own."""

    opened: dict[int, float]
    closed: dict[int, float]
    seconds: dict[int, float]
    phases: list[tuple[int, str, float]]
    cpu: dict[int, dict[str, float]]
    counted: dict[int, tuple[int, int]]
    """Contributors of each round, and the sum of their samples."""
    update_bytes: int = 0
    model_bytes: int = 0
    once_bytes: tuple[int, ...] = ()
    """Blobs that are the same in each round."""

    def tap(self, kind: TopicKind, node: NodeId | None, message: Message) -> None:
        now = time.perf_counter()
        if isinstance(message, Announcement):
            self.phases.append((message.round, message.state, now))
            self.model_bytes = message.model.bytes
            self.once_bytes = tuple(b.bytes for b in (message.manifest, message.trainer) if b is not None)
            if message.state == "open":
                self.opened.setdefault(message.round, now)
        elif isinstance(message, RoundResult):
            assert message.state == "closed", message
            self.closed[message.round] = now
            self.seconds[message.round] = message.seconds
            self.update_bytes = max(c.bytes for c in message.contributors.values())
            self.counted[message.round] = (message.n_contributors, message.n_samples)
            self.cpu[message.round] = cpu_of(os.getpid(), children(os.getppid()))


def settings_of(args: argparse.Namespace) -> Settings:
    return Settings.model_validate(
        {
            "federation": "bench",
            "broker": {"host": args.host, "port": args.port},
            "run": {
                "rounds": args.rounds,
                "min_nodes": args.nodes,
                "settle_s": 0.5,
                "quorum": 1.0,
                # The updates are the model itself, twice as long each round, and every sample trains.
                "clip": 1e6,
                "plan": {"epochs": 1, "validation_share": 0},
            },
            "coordinator": {
                "state_dir": args.folder / "state",
                "runs_dir": args.folder / "runs",
                "sync": args.sync,
            },
            "edge": {
                "node_id": args.node_id,
                "data_dir": args.folder / "pictures",
                "state_dir": args.folder / "nodes" / args.node_id,
            },
        }
    )


def coordinator(args: argparse.Namespace) -> None:
    """One run; a JSON line with the seconds of every round."""
    settings = settings_of(args)
    tune()
    journal = Journal(settings.coordinator.state_dir)
    blobs = BlobStore(settings.coordinator.state_dir / "blobs")
    bus = MqttBus(settings.broker, "bench-coordinator", coordinator_will(settings.topics, "epoch"))
    watch = Stopwatch({}, {}, {}, [], {}, {})
    clocks = Clocks(time.monotonic, time.time)
    service = app.build(
        settings,
        Platform(bus, ThreadWorker("worker", bus.wake), clocks, "epoch", tap=watch.tap),
        Storage(journal, blobs),
        one=journal.open_run("run", time.time(), settings.run.model_dump_json()),
        builders=lambda _, blobs: BenchmarkModelBuilder(blobs, args.bytes, args.layers),
    )
    try:
        service.start()
        service.run(lambda: False)
    finally:
        service.close()
        journal.close()
    rounds = sorted(watch.closed)
    print(
        json.dumps(
            {
                "seconds": [watch.seconds[r] for r in rounds],
                "wall": [watch.closed[r] - watch.opened[r] for r in rounds],
                # From one result to the next: nothing can hide between the rounds.
                "period": [watch.closed[b] - watch.closed[a] for a, b in itertools.pairwise(rounds)],
                "cpu": per_round(watch.cpu[rounds[0]], watch.cpu[rounds[-1]], len(rounds) - 1),
                "collected": [_until(watch, r, "aggregating") for r in rounds],
                "counted": [watch.counted[r] for r in rounds],
                "update_bytes": watch.update_bytes,
                "model_bytes": watch.model_bytes,
                "once_bytes": watch.once_bytes,
            }
        )
    )


def _until(watch: Stopwatch, number: int, state: str) -> float:
    return next(at for r, s, at in watch.phases if (r, s) == (number, state)) - watch.opened[number]


def node(args: argparse.Namespace) -> None:
    """One node, until it is told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    tune(small=True)
    _, service = started_node(args, str(os.getpid()))
    service.run(lambda: False)


def started_node(
    args: argparse.Namespace, instance: str, blob_bytes: int | None = None
) -> tuple[MqttBus, Edge]:
    """The node `args.node_id`; its bus connects by itself when it is turned."""
    settings = settings_of(args)
    edge, name = settings.edge, NodeId(args.node_id)
    bus = MqttBus(
        settings.broker,
        f"bench-{name}",
        edge_will(settings.topics, name, instance),
        receive_maximum=RECEIVE_MAXIMUM,
    )
    service = Edge(
        settings,
        bus=bus,
        stores=NodeStores(
            BlobStore(edge.state_dir / "blobs", blob_bytes or edge.blob_mb * 2**20),
            Outbox(edge.state_dir / "outbox"),
        ),
        training=NoTraining(),
        clocks=Clocks(time.monotonic, time.time),
        facts=NodeFacts(instance, ["litert"]),
    )
    service.start()
    return bus, service


if __name__ == "__main__":
    raise SystemExit(main())
