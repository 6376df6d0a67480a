"""The coordinator's side of a simulation: its worker by the virtual clock, its builder with a meter."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from apiary.learn.manifest import Manifest
from apiary.learn.metrics import Evaluation
from apiary.tensors import Weights
from apiary_cli.simulation.network import ServerBus, VirtualNetwork
from apiary_coordinator.model.builder import ExportedModel, ModelBuilder
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.worker import Done, Job, Lane, Then, run_job

T = TypeVar("T")


class Spent:
    """Virtual seconds that a job of the worker takes, and what the model takes of this machine."""

    def __init__(self) -> None:
        self.virtual_s = 0.0
        self.model_s = 0.0
        self.model_cpu_s = 0.0

    def take(self) -> float:
        """The virtual seconds since the last call."""
        spent, self.virtual_s = self.virtual_s, 0.0
        return spent


class VirtualWorker:
    """Runs jobs in order on the loop's thread; results come after the virtual seconds spent."""

    def __init__(self, network: VirtualNetwork, bus: ServerBus, spent: Spent):
        self.ended = 0
        self._network = network
        self._bus = bus
        self._spent = spent
        self._waiting: deque[tuple[Job, Then, Lane | None]] = deque()
        self._ran: deque[tuple[float, Done]] = deque()
        self._free_at = 0.0

    @property
    def pending(self) -> int:
        """Jobs given and not yet collected."""
        return len(self._waiting) + len(self._ran)

    def submit(self, job: Job, then: Then, lane: Lane | None = None) -> None:
        """Run it with the next turn of the loop."""
        self._waiting.append((job, then, lane))
        self._bus.wake()

    def collect(self) -> list[Done]:
        """Run what waits, and give what is there by now."""
        while self._waiting:
            done = run_job(*self._waiting.popleft())
            self.ended += 1
            self._free_at = max(self._network.now, self._free_at) + self._spent.take()
            self._ran.append((self._free_at, done))
            if self._free_at > self._network.now:
                self._network.at(self._free_at, self._bus.wake)
        found: list[Done] = []
        while self._ran and self._ran[0][0] <= self._network.now:
            found.append(self._ran.popleft()[1])
        return found

    def close(self, timeout_s: float) -> None:
        """What was not begun is dropped: nothing outlives a simulation."""
        self._waiting.clear()


class MeteredBuilder:
    """A model builder whose evaluations take `evaluate_s` of virtual time; `finish` notes how many nodes."""

    def __init__(self, builder: ModelBuilder, spent: Spent, *, evaluate_s: float, nodes: int):
        self._builder = builder
        self._spent = spent
        self._evaluate_s = evaluate_s
        self._nodes = nodes

    def labels(self) -> tuple[str, ...]:
        """As the builder's."""
        return self._builder.labels()

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        """As the builder's."""
        return self._metered(lambda: self._builder.build(ancestor, weights))

    def manifest(self, exported: ExportedModel) -> Manifest:
        """As the builder's."""
        return self._builder.manifest(exported)

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        """As the builder's."""
        self._spent.virtual_s += self._evaluate_s
        return self._metered(lambda: self._builder.evaluate(exported, weights))

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        """As the builder's; a summary shows that the nodes were virtual."""
        made = self._metered(lambda: self._builder.finish(exported, weights, folder))
        return {**made, "virtual_nodes": self._nodes}

    def _metered(self, act: Callable[[], T]) -> T:
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return act()
        finally:
            self._spent.model_s += time.perf_counter() - began
            self._spent.model_cpu_s += time.process_time() - cpu
