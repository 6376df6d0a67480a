"""Where virtual nodes train: in this process, or in child processes while the virtual clock goes on."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from apiary.errors import RunFailed
from apiary.learn.runtimes.base import Runtime
from apiary.process.child import ChildProcess, how_ended, light_environment, start
from apiary_cli.simulation.training import ShareOutcome, ShareTask, ShareTrainer

_LOOK_S: Final = 0.5


class TrainingPool(Protocol):
    """Begins trainings, and gives what came of them."""

    waited_s: float
    """Real seconds that the simulation stood still for trainings."""
    cpu_s: float
    """Seconds of this process's processor that trainings took."""

    def begin(self, task: ShareTask) -> None:
        """A virtual node begins to train."""

    def result(self, task: int) -> ShareOutcome:
        """Its virtual end has come: wait for the outcome. Raises RunFailed where its process died."""

    def close(self) -> None:
        """End what runs."""


class OneProcess:
    """Trains in this process, when the outcome is due."""

    def __init__(self, folder: Path, runtime: Runtime):
        self.waited_s = self.cpu_s = 0.0
        self._trainer = ShareTrainer(folder, runtime)
        self._tasks: dict[int, ShareTask] = {}

    def begin(self, task: ShareTask) -> None:
        """Keep it until its end is due."""
        self._tasks[task.id] = task

    def result(self, task: int) -> ShareOutcome:
        """Train now."""
        began, cpu = time.perf_counter(), time.process_time()
        outcome = self._trainer.train(self._tasks.pop(task))
        self.waited_s += time.perf_counter() - began
        self.cpu_s += time.process_time() - cpu
        return outcome

    def close(self) -> None:
        """Nothing runs."""
        self._tasks.clear()


class ManyProcesses:
    """As many children as jobs, each with a queue of its own; outcomes are the same as in one process."""

    def __init__(self, folder: Path, jobs: int):
        self.waited_s = self.cpu_s = 0.0
        self._news = threading.Event()
        self._children = [_Child(folder, i, self._news.set) for i in range(jobs)]
        self._outcomes: dict[int, ShareOutcome] = {}
        self._with: dict[int, _Child] = {}

    def begin(self, task: ShareTask) -> None:
        """Give it to the child with the fewest."""
        self._collect()
        child = min(self._children, key=lambda child: child.waiting)
        self._with[task.id] = child
        child.give(task)

    def result(self, task: int) -> ShareOutcome:
        """Wait for its child."""
        began = time.perf_counter()
        while task not in self._outcomes:
            self._news.clear()
            self._collect()
            if task not in self._outcomes:
                self._with[task].check()
                self._news.wait(_LOOK_S)
        self.waited_s += time.perf_counter() - began
        del self._with[task]
        return self._outcomes.pop(task)

    def close(self) -> None:
        """End the children."""
        for child in self._children:
            child.end()

    def _collect(self) -> None:
        for child in self._children:
            for outcome in child.collect():
                self._outcomes[outcome.id] = outcome


class _Child:
    def __init__(self, folder: Path, number: int, wake: Callable[[], None]):
        self.waiting = 0
        reading, self._writing = os.pipe()
        try:
            process = start(
                [sys.executable, "-m", "apiary_cli.simulation.worker", str(folder)],
                stdin=reading,
                env=light_environment(MALLOC_ARENA_MAX="1"),
            )
        finally:
            os.close(reading)
        self._process = ChildProcess(process, _parse, wake=wake, name=f"training-{number}")

    def give(self, task: ShareTask) -> None:
        self.waiting += 1
        data = task.model_dump_json().encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except BrokenPipeError:
            self.check()
            raise RunFailed("a training process of the simulation takes no more work") from None

    def collect(self) -> list[ShareOutcome]:
        found = self._process.collect()
        self.waiting -= len(found)
        return found

    def check(self) -> None:
        if (code := self._process.poll()) is not None:
            raise RunFailed(
                f"a training process of the simulation {how_ended(code)}: {self._process.printed[-400:]}"
            )

    def end(self) -> None:
        os.close(self._writing)
        self._process.end()


def _parse(line: bytes) -> ShareOutcome | None:
    try:
        return ShareOutcome.model_validate_json(line) if line.startswith(b"{") else None
    except ValueError:
        return None
