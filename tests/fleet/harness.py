"""The real coordinator and real nodes on the in-memory bus, under a clock that the test moves.

Only training and judging are stand-ins: a node's update is a fixed function of its name, the round and the
model it was given, so that any disturbance that changes what is counted changes the final bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.stand_ins.memory_bus import MemoryBroker, MemoryBus
from tests.stand_ins.slow_worker import SlowWorker

from apiary.blobs import BlobStore
from apiary.bus.bus import Received
from apiary.clocks import Clocks
from apiary.identity.gate import OPEN, MessageGate
from apiary.identity.roles import Role
from apiary.learn.manifest import Manifest, PictureInput, Tensor
from apiary.learn.metrics import Evaluation
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import NodeId, blob
from apiary.wire.chunks import digest_of
from apiary.wire.held_out import shared
from apiary.wire.messages import BlobRef, OperatorReply, OperatorRequest, TrainMetrics
from apiary.wire.topics import TopicKind
from apiary_coordinator import app
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor, carried_over
from apiary_coordinator.resources import Platform, Storage
from apiary_coordinator.round.runner import RoundRunner
from apiary_coordinator.run.run import Run
from apiary_coordinator.service import Coordinator
from apiary_coordinator.service import will as coordinator_will
from apiary_edge.feature import NodeFeature
from apiary_edge.service import Edge, will
from apiary_edge.status.presence import NodeFacts
from apiary_edge.stores import NodeStores
from apiary_edge.training.job import TrainingEvent, TrainJob
from apiary_edge.transfer.outbox import Outbox

TICK_S = 0.1
SHAPES = {"a/kernel": (300, 200), "a/bias": (200,)}
"""240,800 bytes: three chunks."""


Features = Callable[[Edge], Sequence[NodeFeature]]
"""What a node does beside training."""


class FakeModelBuilder:
    """Two tensors, no pictures; accuracy and loss are numbers made of the weights."""

    def __init__(
        self,
        blobs: BlobStore,
        held_out: bytes = b"",
        loss: Callable[[Weights], float] | None = None,
        accuracy: Callable[[Weights], float] | None = None,
    ):
        self._blobs = blobs
        self._held_out = held_out
        self._loss = loss
        self._accuracy = accuracy

    def labels(self) -> tuple[str, ...]:
        return ("a", "b")

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        rng = np.random.default_rng(7)
        initial = Weights({n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()})
        if ancestor is not None and weights is not None:
            initial = carried_over(weights, ancestor.labels, initial, self.labels(), {})
        return ExportedModel(
            labels=("a", "b"),
            manifest=self._keep(self._manifest().encode()),
            trainer=self._keep(b"a trainer" * 20_000),
            base=None,
            initial=self._keep(blob.encode(initial)),
            held_out=self._keep(self._held_out) if self._held_out else None,
            ancestor=ancestor,
        )

    def manifest(self, exported: ExportedModel) -> Manifest:
        return self._manifest()

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        accuracy = 1 - 1 / (2 + abs(float(weights["a/bias"].sum(dtype=np.float64))))
        if self._accuracy is not None:
            accuracy = self._accuracy(weights)
        loss = 1 - accuracy if self._loss is None else self._loss(weights)
        return Evaluation(accuracy, loss, 2, ("a", "b"), {}, ((1, 0), (0, 1)))

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        return {"int8_accuracy": 0.5}

    def _manifest(self) -> Manifest:
        return Manifest(
            recipe="fake",
            input=PictureInput(height=8, width=8, channels=1),
            labels=("a", "b"),
            tensors=tuple(
                Tensor(name=n, shape=s, argument=f"p{i}") for i, (n, s) in enumerate(SHAPES.items())
            ),
            batch_size=16,
            optimizer="adam",
        )

    def _keep(self, data: bytes) -> BlobRef:
        return BlobRef(digest=self._blobs.put(data), bytes=len(data))


def update_of(node: str, round_number: int, before: Weights) -> tuple[Weights, int]:
    """What this node's training makes of the model in this round: new weights and its samples."""
    seed = int.from_bytes(hashlib.sha256(f"{node}/{round_number}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    after = {n: t + rng.normal(scale=0.1, size=t.shape).astype(np.float32) for n, t in before.items()}
    return Weights(after), samples_of(node)


def samples_of(node: str) -> int:
    return 10 + int.from_bytes(hashlib.sha256(node.encode()).digest()[:2], "big") % 20


class FakeTraining:
    """Takes `seconds` of the broker's clock; `spoil` may change the update's bytes."""

    def __init__(
        self, broker: MemoryBroker, seconds: float, spoil: Callable[[bytes], bytes] = lambda data: data
    ):
        self.started = 0
        self.holds = 0
        self.seconds = seconds
        self.spoil = spoil
        self._broker = broker
        self.frozen_at: float | None = None
        self.digests: list[str] = []
        """Of the pictures that it would train on."""
        self._job: TrainJob | None = None
        self._ends = 0.0
        self._next: list[TrainingEvent] = []

    def tells(self, told: TrainingEvent) -> None:
        """Say this before anything else, as a child might."""
        self._next.append(told)

    def start(self, job: TrainJob) -> None:
        self.started += 1
        self._job, self._ends = job, self._broker.now + self.seconds

    def collect(self) -> list[TrainingEvent]:
        if self._next:
            told, self._next = self._next, []
            return told
        if self._job is None or self.frozen_at is not None or self._broker.now < self._ends:
            return []
        job, self._job = self._job, None
        before = blob.decode(job.model.read_bytes(), who="test").weights
        after, samples = update_of(job.node, job.round, before)
        document = self.spoil(
            blob.encode(
                after - before,
                codec_name=job.plan.codec,
                about={"run": job.run, "round": job.round, "node": job.node, "samples": samples},
            )
        )
        job.out.mkdir(parents=True, exist_ok=True)
        (job.out / "update.blob").write_bytes(document)
        metrics = TrainMetrics(loss=0.5, accuracy=0.9, accuracy_before=0.8, seconds=self.seconds)
        digest = digest_of(document)
        return [
            TrainingEvent(
                kind="done",
                digest=digest,
                bytes=len(document),
                samples=samples,
                also_held_out=shared(job.held_out.read_bytes(), self.digests) if job.held_out else None,
                metrics=metrics,
            )
        ]

    def stop(self) -> None:
        self._job = self.frozen_at = None

    def resident(self) -> int:
        return self.holds if self._job is not None else 0

    def freeze(self) -> None:
        self.frozen_at = self._broker.now

    def thaw(self) -> None:
        if self.frozen_at is not None:
            self._ends += self._broker.now - self.frozen_at
        self.frozen_at = None


class Fleet:
    """A coordinator and nodes named `pi-00`, `pi-01`, ...; any of them can be killed and started again."""

    def __init__(
        self,
        folder: Path,
        nodes: int,
        *,
        broker: MemoryBroker | None = None,
        features: Mapping[str, Features] | None = None,
        stay: bool = False,
        more: dict[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        worker_s: float = 0.3,
        at: Callable[[Path], None] = lambda folder: None,
        gates: Callable[[Role, str, Path], MessageGate] = lambda role, name, folder: OPEN,
        held_out: bytes = b"",
        loss: Callable[[Weights], float] | None = None,
        accuracy: Callable[[Weights], float] | None = None,
        **run: Any,
    ):
        self.folder = folder
        at(folder)
        self.tags = tags or {}
        """The site of each node, where it has one."""
        self.gates = gates
        self.held_out = held_out
        self.loss = loss
        """Of a model; by default a number that goes up and down, and no update is left out for it."""
        self.accuracy = accuracy
        self.features = features or {}
        self.broker = broker or MemoryBroker(seed=1, latency_s=0.01)
        self.run_settings = {"rounds": 3, "min_nodes": nodes, "settle_s": 0.5, "seed": 5, **run}
        if loss is None:
            self.run_settings.setdefault("leave_out_gain", 0)
        self.stay = stay
        self.worker_s = worker_s
        """The coordinator's worker begins a job up to so many seconds late, and shows its result as late."""
        self.more = more or {}
        """Further sections of the settings."""
        self.coordinator: Coordinator | None = None
        self.nodes: dict[str, Edge] = {}
        self.trainings: dict[str, FakeTraining] = {}
        self.starts = 0
        self.clock_error: dict[str, float] = {}
        self._journal: Journal | None = None
        for i in range(nodes):
            self.start_node(f"pi-{i:02d}")
        self.start_coordinator()

    def settings(self, node: str = "x") -> Settings:
        return Settings.model_validate(
            {
                **self.more,
                "run": self.run_settings,
                "coordinator": {
                    "state_dir": self.folder / "coordinator",
                    "runs_dir": self.folder / "runs",
                    "sync": False,
                    "upload_idle_s": 3.0,
                    "max_uploads": 4,
                    **self.more.get("coordinator", {}),
                },
                "edge": {
                    "node_id": node,
                    "tags": {"site": self.tags[node]} if node in self.tags else {},
                    "data_dir": self.folder / "pictures",
                    "state_dir": self.folder / node,
                    "upload_idle_s": 3.0,
                    "want_idle_s": 2.0,
                },
            }
        )

    def start_coordinator(self) -> None:
        settings = self.settings()
        self.starts += 1
        epoch = f"epoch-{self.starts}"
        self._journal = Journal(settings.coordinator.state_dir)
        one = None if self.stay else self._journal.active_run()
        if one is None and not self.stay:
            one = self._journal.open_run("run", 0.0, settings.run.model_dump_json())
        self.coordinator = app.build(
            settings,
            Platform(
                self.broker.bus("coordinator", coordinator_will(settings.topics, epoch)),
                SlowWorker(lambda: self.broker.now, seed=self.starts, most_s=self.worker_s),
                Clocks(lambda: self.broker.now, lambda: self.broker.now),
                epoch,
                self.gates(Role.COORDINATOR, "hive", settings.coordinator.state_dir),
            ),
            Storage(self._journal, BlobStore(settings.coordinator.state_dir / "blobs")),
            one=one,
            builders=lambda _, blobs: FakeModelBuilder(blobs, self.held_out, self.loss, self.accuracy),
        )
        self.coordinator.start()

    def ask(self, op: str, /, *, id: str | None = None, **args: Any) -> OperatorReply:  # noqa: A002
        """What an operator is told; turns until there is an answer. Fails where none comes."""
        request = OperatorRequest(id=id or f"ask-{self.broker.now:.1f}", op=op, args=args)
        topics = self.settings().topics
        bus = self.broker.bus("operator", None)
        bus.subscribe(topics.pattern(TopicKind.OPERATOR_REPLY, node=NodeId("anna")))
        topic = topics.build(TopicKind.OPERATOR_REQUEST, node=NodeId("anna"))
        for i in range(1200):
            if i % 20 == 1:
                bus.publish(topic, request.encode())
            self.turn()
            for event in bus.poll(0):
                if isinstance(event, Received):
                    answer = OperatorReply.decode(event.payload, who="coordinator")
                    if answer.id == request.id and answer.state != "working":
                        bus.close()
                        return answer
        raise AssertionError(f"no answer to {op}")

    @property
    def hosted(self) -> Run:
        """The run that the coordinator hosts; fails where there is none."""
        assert self.coordinator is not None and self.coordinator.host.current is not None
        return self.coordinator.host.current

    @property
    def runner(self) -> RoundRunner | None:
        """What runs the open round; None between rounds, and where no coordinator or run is."""
        return self.coordinator.host.runner if self.coordinator is not None else None

    @property
    def journal(self) -> Journal:
        """The coordinator's; fails where that has never been started."""
        assert self._journal is not None
        return self._journal

    def kill_coordinator(self) -> None:
        """As `kill -9`: nothing is said, what is in memory is gone."""
        if self.coordinator is not None and self._journal is not None:
            self._cut("coordinator")
            self._journal.close()
            self.coordinator = None

    def start_node(self, node: str, *, seconds: float | None = None, samples: int = 33) -> Edge:
        folder = self.folder / "pictures" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(samples):
            (folder / f"{i}.png").touch()
        settings = self.settings(node)
        self.starts += 1
        # Nodes differ in speed, so that updates come neither all at once nor in the order of names.
        pace = 1.0 + samples_of(node) / 10 if seconds is None else seconds
        training = self.trainings.setdefault(node, FakeTraining(self.broker, pace))
        instance = f"instance-{self.starts}"
        self.nodes[node] = Edge(
            settings,
            bus=self.broker.bus(node, will(settings.topics, NodeId(node), instance)),
            stores=NodeStores(
                BlobStore(settings.edge.state_dir / "blobs", 2**28),
                Outbox(settings.edge.state_dir / "outbox"),
            ),
            training=training,
            clocks=Clocks(lambda: self.broker.now, lambda: self.broker.now + self.clock_error.get(node, 0.0)),
            facts=NodeFacts(instance, ["fake"]),
            gate=self.gates(Role.NODE, node, settings.edge.state_dir),
        )
        self.nodes[node].features += self.features[node](self.nodes[node]) if node in self.features else []
        self.nodes[node].start()
        return self.nodes[node]

    def kill_node(self, node: str) -> None:
        self._cut(node)
        self.trainings[node].stop()
        del self.nodes[node]

    def turn(self) -> None:
        """Every party's loop once, and a tick of the clock."""
        if self.coordinator is not None:
            self.coordinator.step(0)
        for node in list(self.nodes.values()):
            node.step(0)
        self.broker.now += TICK_S

    def run(
        self, *, seconds: float = 1200, each: Callable[[int], None] = lambda turn: None
    ) -> dict[str, Any]:
        """Turn until the run is over; its summary. Fails where it is not over in time."""
        for i in range(int(seconds / TICK_S)):
            each(i)
            self.turn()
            run = self.coordinator.host.current if self.coordinator is not None else None
            if run is not None and run.stage == "done":
                return run.summary
        stage = run.stage if run else "dead"
        states = {n: e.session.state.value for n, e in self.nodes.items()}
        raise AssertionError(f"not over after {seconds} s: coordinator {stage}, nodes {states}")

    def until(self, done: Callable[[], Any], seconds: float = 600) -> Any:
        """Turn until `done` gives something, and return it; `seconds` are the fleet's own."""
        for _ in range(round(seconds / TICK_S)):
            if value := done():
                return value
            self.turn()
        raise AssertionError(f"not so within {seconds:g} s: {self.broker.now:.1f} by the fleet's clock")

    def results(self) -> list[dict[str, Any]]:
        assert self._journal is not None
        return list(self._journal.results("run"))

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _cut(self, client: str) -> None:
        self.broker.cut(client, for_s=float("inf"))


MakeFleet = Callable[..., Fleet]
"""The fixture `make_fleet`: the number of nodes, then options of `Fleet`."""

__all__ = ["Fleet", "MakeFleet", "MemoryBus", "update_of"]
