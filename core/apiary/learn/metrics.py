"""How good predictions are: accuracy, loss, precision, recall, F1 and the confusion matrix."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.tensors import Array


@dataclass(frozen=True, slots=True)
class ClassReport:
    """Of one class; precision is 0 where it was never predicted, recall 0 where `count` is 0."""

    precision: float
    recall: float
    f1: float
    count: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of a model on `count` samples. `confusion[true][predicted]` counts them, in the order of `labels`."""

    accuracy: float
    loss: float
    count: int
    labels: tuple[str, ...]
    classes: dict[str, ClassReport]
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"labels": list(self.labels), "confusion": [list(r) for r in self.confusion]}


def report(probabilities: Array, y: NDArray[np.int64], labels: Sequence[str]) -> Evaluation:
    """Judge float32[N, C] probabilities against int64[N] true classes. Raises DataError where N is 0."""
    if not len(y):
        raise DataError("nothing to evaluate: no samples")
    n, predicted = len(labels), probabilities.argmax(axis=1)
    confusion = np.bincount(y * n + predicted, minlength=n * n).reshape(n, n)
    return Evaluation(
        accuracy=accuracy(probabilities, y),
        loss=cross_entropy(probabilities, y),
        count=len(y),
        labels=tuple(labels),
        classes={label: _one(confusion, i) for i, label in enumerate(labels)},
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
    )


def accuracy(probabilities: Array, y: NDArray[np.int64]) -> float:
    """Share of samples whose most probable class is the true one."""
    return float(np.mean(probabilities.argmax(axis=1) == y))


def cross_entropy(probabilities: Array, y: NDArray[np.int64]) -> float:
    """Mean of -log p(true class); p is kept above 1e-7, as Keras does, and so is one that is not a number.

    A model that has run away is as wrong as can be, and a figure that others can read.
    """
    true = np.nan_to_num(probabilities[np.arange(len(y)), y].astype(np.float64), nan=0.0)
    return float(-np.mean(np.log(np.clip(true, 1e-7, 1.0))))


def _one(confusion: NDArray[np.int64], i: int) -> ClassReport:
    hit, predicted, real = int(confusion[i, i]), int(confusion[:, i].sum()), int(confusion[i].sum())
    precision = hit / predicted if predicted else 0.0
    recall = hit / real if real else 0.0
    f1 = 2 * hit / (predicted + real) if predicted + real else 0.0
    return ClassReport(precision, recall, f1, real)
