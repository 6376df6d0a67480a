"""A virtual node's training: the node's own steps on its rows of the shared pictures.

Pictures lie in `.npy` files that every training process maps: they are in memory once, whatever the nodes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from apiary.errors import ApiaryError, DataError
from apiary.files import write_atomic
from apiary.learn.fit import Fit
from apiary.learn.images import Dataset
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes.base import Runtime, Trainer
from apiary.tensors import Weights
from apiary.wire import Digest, blob
from apiary.wire.chunks import digest_of
from apiary.wire.messages import Plan, TrainMetrics
from apiary_edge.training.update import make_update

X: Final = "x.npy"
Y: Final = "y.npy"
DIGESTS: Final = "digests.npy"
ROWS: Final = "rows.npy"
ENDS: Final = "ends.npy"
_HEX_BYTES: Final = 32


class ShareTask(BaseModel):
    """Train node number `place` for a round; `epochs` of the plan's at most. The update goes to `out`."""

    model_config = ConfigDict(frozen=True)

    id: int
    run: str
    round: int
    node: str
    place: int
    plan: Plan
    manifest: Path
    trainer: Path | None
    model: Path
    max_norm: float | None
    epochs: int
    out: Path


class ShareOutcome(BaseModel):
    """What came of a task; `text` says why there is no update. `seconds` are real ones."""

    model_config = ConfigDict(frozen=True)

    id: int
    kind: Literal["done", "declined", "failed"]
    text: str = ""
    digest: str = ""
    bytes: int = 0
    samples: int = 0
    metrics: TrainMetrics | None = None
    seconds: float = 0.0


def store(folder: Path, data: Dataset, parts: Sequence[NDArray[np.int64]]) -> None:
    """Put pictures and shares where every training process maps them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / X, data.x)
    np.save(folder / Y, data.y)
    np.save(folder / DIGESTS, np.frombuffer(bytes.fromhex("".join(data.digests)), np.uint8))
    np.save(folder / ROWS, np.concatenate([np.empty(0, np.int64), *parts]))
    np.save(folder / ENDS, np.cumsum([len(part) for part in parts]))


class ShareTrainer:
    """Trains one task after another in this process, in one thread."""

    def __init__(self, folder: Path, runtime: Runtime):
        self._x = np.load(folder / X, mmap_mode="r")
        self._y: NDArray[np.int64] = np.load(folder / Y)
        self._digests = np.load(folder / DIGESTS).reshape(-1, _HEX_BYTES)
        self._rows: NDArray[np.int64] = np.load(folder / ROWS, mmap_mode="r")
        self._ends: NDArray[np.int64] = np.load(folder / ENDS)
        self._runtime = runtime
        self._model: tuple[Path, Weights] | None = None
        self._opened: tuple[tuple[Path, Path | None], Manifest, Trainer] | None = None

    def train(self, task: ShareTask) -> ShareOutcome:
        """Do a task. Raises StoreError where the update cannot be written."""
        began = time.perf_counter()
        try:
            document, fit = self._update(task)
        except ApiaryError as e:
            kind: Literal["declined", "failed"] = "declined" if isinstance(e, DataError) else "failed"
            return ShareOutcome(id=task.id, kind=kind, text=str(e)[:500])
        # Its node would sync it; what is lost here is lost with the whole simulation.
        write_atomic(task.out, document, sync=False)
        metrics = TrainMetrics(
            loss=fit.loss, accuracy=fit.accuracy, accuracy_before=fit.accuracy_before, epochs=fit.epochs
        )
        return ShareOutcome(
            id=task.id,
            kind="done",
            digest=digest_of(document),
            bytes=len(document),
            samples=fit.samples,
            metrics=metrics,
            seconds=time.perf_counter() - began,
        )

    def data(self, place: int, labels: tuple[str, ...]) -> Dataset:
        """The pictures of a node."""
        rows = self._rows[self._ends[place - 1] if place else 0 : self._ends[place]]
        digests = tuple(bytes(self._digests[row]).hex() for row in rows)
        return Dataset(self._x[rows], self._y[rows], digests, labels)

    def _update(self, task: ShareTask) -> tuple[bytes, Fit]:
        manifest, trainer = self._open(task)
        data = self.data(task.place, manifest.labels)
        if not len(data):
            raise DataError("there are no pictures to train on")
        if self._model is None or self._model[0] != task.model:
            self._model = (
                task.model,
                blob.decode(task.model.read_bytes(), who="the announced model").weights,
            )
        return make_update(
            trainer,
            manifest,
            task.plan,
            data,
            self._model[1],
            run=task.run,
            round_=task.round,
            node=task.node,
            max_norm=task.max_norm,
            enough=lambda epoch: epoch >= task.epochs,
        )

    def _open(self, task: ShareTask) -> tuple[Manifest, Trainer]:
        key = (task.manifest, task.trainer)
        if self._opened is None or self._opened[0] != key:
            manifest = Manifest.decode(task.manifest.read_bytes())
            self._opened = (key, manifest, self._runtime.open_trainer(manifest, task.trainer, threads=1))
        return self._opened[1:]


class UpdateFile:
    """A finished update on its way: read a part at a time, as from a node's outbox."""

    def __init__(self, path: Path, digest: Digest):
        self.digest = digest
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        """A part of its bytes."""
        fd = os.open(self._path, os.O_RDONLY)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def remove(self) -> None:
        """It was answered."""
        self._path.unlink(missing_ok=True)
