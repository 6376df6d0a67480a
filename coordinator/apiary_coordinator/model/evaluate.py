"""The global model on the coordinator's own held-out pictures, in the light runtime: no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from apiary.errors import DataError
from apiary.learn.fit import predict
from apiary.learn.images import Dataset
from apiary.learn.metrics import Evaluation, report
from apiary.learn.runtimes.base import Trainer
from apiary.tensors import Weights


def evaluate(trainer: Trainer, weights: Weights, dataset: Dataset, labels: Sequence[str]) -> Evaluation:
    """Judge `weights`, which `trainer` holds afterwards. Raises DataError for other labels, or no samples."""
    if tuple(labels) != dataset.labels:
        raise DataError(
            f"the held-out pictures have the labels {list(dataset.labels)}, the model {list(labels)}"
        )
    trainer.set_weights(weights)
    return report(predict(trainer, dataset), dataset.y, labels)
