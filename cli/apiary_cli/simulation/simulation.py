"""A run of a simulated federation: the real coordinator, virtual nodes, one clock that jumps."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apiary.blobs import BlobStore
from apiary.bus.outlet import Tap, no_tap
from apiary.clocks import Clocks
from apiary.errors import RunFailed, SettingsError
from apiary.files import write_json
from apiary.learn.cache import ArrayCache
from apiary.learn.fit import passes_of, split, steps_of
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes import choose
from apiary.learn.runtimes.base import Runtime
from apiary.settings import Settings
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Announcement
from apiary_cli.simulation.fleet import FleetModel, NodeTraits
from apiary_cli.simulation.network import NodeBus, VirtualNetwork
from apiary_cli.simulation.node import Act, VirtualNode
from apiary_cli.simulation.pool import ManyProcesses, OneProcess, TrainingPool
from apiary_cli.simulation.server import MeteredBuilder, Spent, VirtualWorker
from apiary_cli.simulation.shares import Shares, rows_of
from apiary_cli.simulation.training import ShareTask, UpdateFile, store
from apiary_coordinator import app
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.keras import KerasModelBuilder
from apiary_coordinator.resources import Platform, Storage
from apiary_coordinator.run.run import Run
from apiary_coordinator.schedule.opening import one_run
from apiary_coordinator.schedule.queue import ModelBuilders
from apiary_coordinator.service import will as server_will
from apiary_edge.training import pictures

log = logging.getLogger(__name__)

RECORD: Final = "simulation.json"
_JOIN_A_SECOND: Final = 1000
"""Nodes that connect in one virtual second."""
_CACHE_MB: Final = 4096
_STUCK_S: Final = 6 * 3600.0
"""So long without a round, and with nothing planned, nothing will come any more."""
_TRAIN_SHARE: Final = 0.7
"""As the node's: of a round's time, where the plan takes partial work."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who takes part, by what paces and links, with how many training processes."""

    shares: Shares
    nodes: tuple[NodeTraits, ...]
    model: FleetModel
    seed: int
    jobs: int = 1
    runtime: Runtime | None = None
    """What one process trains with; unset, as several do: the lightest that is here."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulation gave: the run's folder and summary, and what it took. Empty where it was stopped."""

    folder: Path
    summary: dict[str, Any]
    figures: dict[str, Any]


class SimulatedFleet:
    """The virtual nodes of a scenario; `Surroundings` of each. `blobs` are the coordinator's."""

    def __init__(
        self, scenario: Scenario, settings: Settings, network: VirtualNetwork, blobs: BlobStore, folder: Path
    ):
        self.topics = settings.topics
        self.offer_idle_s = settings.edge.upload_idle_s
        self.window = settings.broker.inflight
        self.trained = 0
        """Trainings that ended with an update."""
        self.vanished = 0
        self._scenario = scenario
        self._network = network
        self._blobs = blobs
        self._folder = folder
        self._pool: TrainingPool | None = None
        self._training_samples: NDArray[np.int64] = np.empty(0, np.int64)
        self._tasks = 0
        self._loading_s = 0.0
        self.nodes: list[VirtualNode] = []

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self._network.now

    @property
    def cpu_s(self) -> float:
        """Seconds of this process's processor that trainings, and loading the pictures, took."""
        return self._loading_s + (self._pool.cpu_s if self._pool is not None else 0.0)

    @property
    def waited_s(self) -> float:
        """Real seconds that the simulation stood still for trainings."""
        return self._pool.waited_s if self._pool is not None else 0.0

    def at(self, when: float, act: Act) -> None:
        """Plan something."""
        self._network.at(when, act)

    def start(self) -> None:
        """Let the nodes come, some each moment."""
        shares = self._scenario.shares
        for place, traits in enumerate(self._scenario.nodes):
            row = shares.counts[place]
            labels = {label: int(n) for label, n in zip(shares.labels, row, strict=True) if n}
            node = VirtualNode(NodeId(traits.name), place, labels, self)
            self.nodes.append(node)
            self.at(place / _JOIN_A_SECOND, node.step)

    def connect(self, node: VirtualNode) -> NodeBus:
        """The node's end of its link; not connected yet."""
        link = self._scenario.nodes[node.place].link
        return self._network.node_bus(node.name, node.will(), link, node.step)

    def train(self, node: VirtualNode, announcement: Announcement) -> None:
        """Begin a training: it ends by the virtual clock, however long it takes."""
        pool = self._pool or self._open(announcement)
        traits, plan = self._scenario.nodes[node.place], announcement.plan
        samples = int(self._training_samples[node.place])
        # A batch is always full: filler costs as much as pictures.
        whole_s = traits.pace_s * plan.batch_size * steps_of(plan, samples)
        epochs = planned = passes_of(plan, samples)
        if plan.partial and whole_s > 0:
            fits = (_TRAIN_SHARE * announcement.deadline_s - traits.start_s) / whole_s * planned
            epochs = min(planned, max(1, math.floor(fits)))
        seconds, attempt = traits.start_s + whole_s * epochs / planned, node.attempt
        chance, moment = self._luck(node, announcement)
        if chance < self._scenario.model.drop_out:
            self.vanished += 1
            self.at(self.now + moment * seconds, partial(node.vanish, attempt, self._scenario.model.away_s))
            return
        self._tasks += 1
        path = self._blobs.path
        task = ShareTask(
            id=self._tasks,
            run=announcement.run,
            round=announcement.round,
            node=node.name,
            place=node.place,
            plan=plan,
            manifest=path(Digest(announcement.manifest.digest)),
            trainer=path(Digest(announcement.trainer.digest)) if announcement.trainer else None,
            model=path(Digest(announcement.model.digest)),
            max_norm=announcement.bounds.max_norm,
            epochs=epochs,
            out=self._folder / "updates" / str(self._tasks),
        )
        pool.begin(task)
        self.at(self.now + seconds, partial(self._ended, node, attempt, announcement, task, seconds))

    def close(self) -> None:
        """End the training processes."""
        if self._pool is not None:
            self._pool.close()

    def _ended(
        self, node: VirtualNode, attempt: int, announcement: Announcement, task: ShareTask, seconds: float
    ) -> None:
        assert self._pool is not None  # noqa: S101 - it took the task
        outcome = self._pool.result(task.id)
        if outcome.metrics is not None:
            self.trained += 1
            metrics = outcome.metrics.model_copy(update={"seconds": round(seconds, 3)})
            outcome = outcome.model_copy(update={"metrics": metrics})
        node.trained(attempt, announcement, outcome, UpdateFile(task.out, Digest(outcome.digest)))

    def _luck(self, node: VirtualNode, announcement: Announcement) -> tuple[float, float]:
        """Two numbers from 0 to 1 of this training, the same in each simulation of the seed."""
        what = f"{self._scenario.seed}/{announcement.round}/{node.name}/{node.attempt}"
        digest = hashlib.sha256(what.encode()).digest()
        return tuple(int.from_bytes(digest[i : i + 7], "big") / 2**56 for i in (0, 7))  # type: ignore[return-value]

    def _open(self, announcement: Announcement) -> TrainingPool:
        """Load the pictures once the model says of which size, and start what trains on them."""
        cpu = time.process_time()
        manifest = Manifest.decode(self._blobs.read(Digest(announcement.manifest.digest)))
        shares, base = self._scenario.shares, announcement.base
        runtime = self._scenario.runtime or choose()
        found, parts = shares.scan(manifest.labels, manifest.input)
        data = pictures.load(
            found,
            manifest,
            runtime,
            ArrayCache(self._folder / "cache", _CACHE_MB),
            base=self._blobs.path(Digest(base.digest)) if base is not None else None,
            base_digest=base.digest if base is not None else None,
        )
        rows = rows_of(data, found.records, parts)
        share = announcement.plan.validation_share
        self._training_samples = np.array(
            [len(split(tuple(data.digests[i] for i in part), share)[0]) if len(part) else 0 for part in rows],
            np.int64,
        )
        store(self._folder / "pictures", data, rows)
        (self._folder / "updates").mkdir(exist_ok=True)
        jobs = self._scenario.jobs
        folder = self._folder / "pictures"
        self._pool = OneProcess(folder, runtime) if jobs == 1 else ManyProcesses(folder, jobs)
        self._loading_s = time.process_time() - cpu
        return self._pool


def check(settings: Settings, scenario: Scenario) -> None:
    """Refuse what would wait for ever. Raises SettingsError."""
    run, nodes = settings.run, len(scenario.nodes)
    if run.min_nodes > nodes:
        raise SettingsError(
            f"run.min_nodes is {run.min_nodes}, the simulated fleet has {nodes} nodes: "
            "no round would ever begin; give more --nodes, or a smaller run.min_nodes"
        )


def simulate(
    settings: Settings,
    scenario: Scenario,
    folder: Path,
    *,
    name: str | None = None,
    tap: Tap = no_tap,
    stop: Callable[[], bool] = lambda: False,
    after_run: Callable[[Path], object] = lambda folder: None,
    builders: ModelBuilders = KerasModelBuilder,
) -> Simulated | None:
    """Simulate one run; its result lies in `coordinator.runs_dir`. None where `stop` ended it.

    `settings.coordinator.state_dir` and `folder` hold what it works with. Raises ApiaryError.
    """
    check(settings, scenario)
    began, cpu, spent = time.perf_counter(), time.process_time(), Spent()
    settings = settings.model_copy(
        update={"coordinator": settings.coordinator.model_copy(update={"sync": False})}
    )
    journal = Journal(settings.coordinator.state_dir, sync=False)
    storage = Storage(journal, BlobStore(settings.coordinator.state_dir / "blobs"))
    network, wall = VirtualNetwork(), time.time()
    bus = network.server_bus("coordinator", server_will(settings.topics, "simulated"))
    fleet = SimulatedFleet(scenario, settings, network, storage.blobs, folder)

    def builder(settings: Settings, blobs: BlobStore) -> MeteredBuilder:
        made = builders(settings, blobs)
        server_s = scenario.model.server_s
        return MeteredBuilder(made, spent, evaluate_s=server_s, nodes=len(scenario.nodes))

    after_s = 0.0

    def ended(result: Path) -> None:
        nonlocal after_s
        at = time.perf_counter()
        after_run(result)
        after_s += time.perf_counter() - at

    coordinator = app.build(
        settings,
        Platform(
            bus,
            VirtualWorker(network, bus, spent),
            Clocks(lambda: network.now, lambda: wall + network.now),
            "simulated",
            tap=tap,
        ),
        storage,
        one=one_run(settings, storage, builder, name=name, new=False),
        builders=builder,
        after_run=ended,
    )
    try:
        fleet.start()
        coordinator.start()
        coordinator.run(
            stop, partial(_look, coordinator.host, network, Stuck(_STUCK_S + scenario.model.away_s))
        )
        run = coordinator.host.current
        virtual_s = network.now
    finally:
        fleet.close()
        coordinator.close()
        journal.close()
    if run is None or stop():
        return None
    if not run.summary:
        raise RunFailed(f"run {run.name} ended without a model: {run.history.stop}")
    real_s = time.perf_counter() - began
    own_s = time.process_time() - cpu - fleet.cpu_s - spent.model_cpu_s
    figures = {
        "nodes": len(scenario.nodes),
        "jobs": scenario.jobs,
        "virtual_s": round(virtual_s, 3),
        "real_s": round(real_s, 3),
        "training_waited_s": round(fleet.waited_s, 3),
        "model_s": round(spent.model_s + after_s, 3),
        "own_s": round(own_s, 3),
        "trained": fleet.trained,
        "vanished": fleet.vanished,
        "seed": scenario.seed,
        "fleet": scenario.model.model_dump(mode="json"),
    }
    write_json(run.history.folder / RECORD, figures, indent=2)
    return Simulated(run.history.folder, run.summary, figures)


class Stuck:
    """Notices a run that waits for what cannot come."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self._since: float | None = None

    def __call__(self, waits: bool, now: float) -> bool:
        """Whether it has waited too long."""
        if not waits:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since > self._limit_s


def _look(host: Any, network: VirtualNetwork, stuck: Stuck) -> None:
    run: Run | None = host.current
    waits = run is not None and run.stage == "waiting" and run.runner is None
    if stuck(waits, network.now):
        raise RunFailed(
            f"no round could begin for {_STUCK_S / 3600:.0f} virtual hours: too few nodes are fit "
            "(run.min_nodes, plan.min_samples, run.only)"
        )
