"""Local training: one node, one round, one function over whichever runtime the machine has."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError, ModelError
from apiary.learn.augment import augment, augments, mixed
from apiary.learn.images import Dataset
from apiary.learn.manifest import Manifest, controls_of
from apiary.learn.metrics import accuracy
from apiary.learn.runtimes.base import StepControls, Trainer
from apiary.tensors import Array, Weights, differs
from apiary.wire.messages import Plan

INFER_BATCH: Final = 8
"""Pictures made floats at once for inference: 0.9 MB at 96x96x3."""


_NOISE: Final = 1
"""Sets the stream of dropout's noise apart from that of the batches."""


@dataclass(frozen=True, slots=True)
class FitProgress:
    """After a batch: the epoch (from 1), the share of it that is done, its mean loss so far.

    `accuracy` on the validation split is there at the end of an epoch, where the node has a split.
    """

    epoch: int
    epochs: int
    fraction: float
    loss: float
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """What local training gave. `samples` trained; `loss` is the last epoch's mean.

    The accuracies are on the validation split before and after, None where the node has none.
    """

    weights: Weights
    samples: int
    validation_samples: int
    loss: float
    accuracy_before: float | None
    accuracy: float | None
    epochs: int
    warnings: tuple[str, ...]


def node_seed(seed: int, round_: int, node: str) -> int:
    """The seed of one node in one round: the same on every machine and in every run of that seed."""
    digest = hashlib.sha256(f"{seed}/{round_}/{node}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def split(digests: tuple[str, ...], share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that train and indices that validate, by picture digest alone.

    A picture keeps its side over rounds, copies of it are on the same side, and new pictures move none; so
    the share is met on average only. At least one picture trains. The digest's end decides: a sample store
    holds pictures out by its beginning, and of what that leaves none would be below the same share.
    """
    place = np.array([int(d[-13:], 16) / 16**13 for d in digests])
    validates = place < share
    if validates.all():
        validates = place < place.max()
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def steps_of(plan: Plan, samples: int) -> int:
    """Training steps of a node that trains on so many samples: `plan.steps`, or those of its epochs."""
    return plan.steps if plan.steps is not None else plan.epochs * _steps_a_pass(plan, samples)


def passes_of(plan: Plan, samples: int) -> int:
    """Passes over so many samples, begun ones counted: `plan.epochs`, or what `plan.steps` takes."""
    return -(-steps_of(plan, samples) // _steps_a_pass(plan, samples))


def predict(trainer: Trainer, data: Dataset) -> Array:
    """Class probabilities float32[N, C], a few pictures at a time."""
    parts = [trainer.infer(data.floats(slice(i, i + INFER_BATCH))) for i in range(0, len(data), INFER_BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, len(data.labels)), np.float32)


def class_weights(y: NDArray[np.int64], classes: int) -> Array:
    """float32[C]: a class's weight so that each class present counts the same; their mean over `y` is 1."""
    counts = np.bincount(y, minlength=classes)
    present = int(np.count_nonzero(counts))
    return np.where(counts > 0, len(y) / (present * np.maximum(counts, 1)), 0).astype(np.float32)


def fit(
    trainer: Trainer,
    manifest: Manifest,
    plan: Plan,
    data: Dataset,
    weights: Weights,
    *,
    seed: int,
    progress: Callable[[FitProgress], None] | None = None,
    enough: Callable[[int], bool] = lambda epoch: False,
) -> Fit:
    """Train `weights` on `data` by `plan`. Deterministic in its arguments and the runtime.

    `enough(epoch)` is called after each pass over the samples; true ends training early. With `plan.steps`
    the last pass ends where they do.

    Raises DataError for fewer than `plan.min_samples` training samples or data of another shape, ModelError
    where weights or plan do not fit the manifest, or where training ran away (NaN or infinite).
    """
    warnings = _check(manifest, plan, data, weights)
    pictures = augments(plan) and not _ignores_augmentation(manifest)
    train, held = split(data.digests, plan.validation_share)
    if len(train) < plan.min_samples:
        raise DataError(
            f"{len(train)} pictures train ({len(held)} are kept for validation), "
            f"the plan asks for at least {plan.min_samples}"
        )
    validation = data.take(held)
    trainer.set_weights(weights)
    before = _accuracy(trainer, validation)
    classes = len(manifest.labels)
    scale = class_weights(data.y[train], classes) if plan.class_weights else np.ones(classes, np.float32)
    loss, after, epochs = math.nan, before, 0
    controls = StepControls.of(plan)
    planned, steps = passes_of(plan, len(train)), steps_of(plan, len(train))
    for epoch in range(1, planned + 1):
        rng = np.random.default_rng([seed, epoch])
        total, done = 0.0, 0
        batches = _batches(data, train, plan, rng, scale, pictures=pictures)
        # A stream of its own: what is drawn and how pictures are changed does not hang on dropout.
        noise = np.random.default_rng([seed, epoch, _NOISE])
        in_pass = min(steps, _steps_a_pass(plan, len(train)))
        pass_samples = min(len(train), in_pass * plan.batch_size)
        for x, y, w, size in islice(batches, in_pass):
            if manifest.noise:
                controls = replace(controls, noise_seed=int(noise.integers(2**63)))
            value = trainer.step(x, y, w, controls)
            if not math.isfinite(value):
                raise ModelError(
                    f"training ran away: loss {value} in epoch {epoch}; "
                    f"a learning rate below {plan.learning_rate} may help"
                )
            total, done = total + value * size, done + size
            if progress and done < pass_samples:
                progress(FitProgress(epoch, planned, done / pass_samples, total / done))
        steps -= in_pass
        loss = total / done
        after = _accuracy(trainer, validation)
        if progress:
            progress(FitProgress(epoch, planned, 1.0, loss, after))
        epochs = epoch
        if enough(epoch):
            break
    trained = trainer.get_weights()
    if not trained.is_finite():
        raise ModelError("training ran away: the weights hold NaN or infinity; lower the learning rate")
    return Fit(trained, len(train), len(held), loss, before, after, epochs, tuple(warnings))


def _steps_a_pass(plan: Plan, samples: int) -> int:
    return max(1, -(-samples // plan.batch_size))


def _batches(
    data: Dataset,
    train: NDArray[np.int64],
    plan: Plan,
    rng: np.random.Generator,
    scale: Array,
    *,
    pictures: bool,
) -> Iterator[tuple[Array, Array, Array, int]]:
    """All of `train` once, shuffled: the arrays of `Trainer.step`, and how many samples are real.

    `pictures` are changed as the plan says.

    The last batch is filled by wrapping round, the filler's weight is 0.
    """
    order = rng.permutation(train)
    for start in range(0, len(order), plan.batch_size):
        real = min(plan.batch_size, len(order) - start)
        chosen = np.resize(order, start + plan.batch_size)[start:]
        x = data.x[chosen]
        y = np.zeros((plan.batch_size, len(scale)), np.float32)
        y[np.arange(plan.batch_size), data.y[chosen]] = 1
        # Keras' sum over the batch size: a class weight scales the step, it is not normalised away.
        w = scale[data.y[chosen]] / np.float32(real)
        w[real:] = 0
        if pictures:
            x = augment(cast("NDArray[np.uint8]", x), rng, plan)
            if plan.mix:
                x, y, w = mixed(x, y, w, rng, alpha=plan.mix, real=real)
        if plan.label_smoothing:
            # As Keras has it (Szegedy et al. 2016, arXiv:1512.00567).
            y = y * np.float32(1 - plan.label_smoothing) + np.float32(plan.label_smoothing / len(scale))
        yield np.ascontiguousarray(x, np.float32), y, w, real


def _accuracy(trainer: Trainer, data: Dataset) -> float | None:
    return accuracy(predict(trainer, data), data.y) if len(data) else None


def _check(manifest: Manifest, plan: Plan, data: Dataset, weights: Weights) -> list[str]:
    if why := differs(weights.shapes, manifest.shapes):
        raise ModelError(f"the weights are not those of the model {manifest.recipe}: {why}")
    planned: dict[str, Any] = {"batch_size": plan.batch_size, "optimizer": plan.optimizer}
    built: dict[str, Any] = {"batch_size": manifest.batch_size, "optimizer": manifest.optimizer}
    if plan.optimizer == "sgd":
        planned["momentum"], built["momentum"] = plan.momentum, manifest.momentum
    if planned != built:
        raise ModelError(f"the plan asks for {planned}, the model was exported for {built}")
    if missing := [control for control in controls_of(plan) if control not in manifest.controls]:
        raise ModelError(f"the plan uses {' and '.join(missing)}, which the model was exported without")
    if data.labels != manifest.labels:
        raise DataError(
            f"the pictures have the labels {list(data.labels)}, the model {list(manifest.labels)}"
        )
    side = manifest.input
    shape = (manifest.features,) if manifest.features else (side.height, side.width, side.channels)
    if data.x.shape[1:] != shape:
        raise DataError(f"samples of shape {list(data.x.shape[1:])}, the model takes {list(shape)}")
    if augments(plan) and (why := _ignores_augmentation(manifest)):
        return [f"augmentation is ignored: the recipe {manifest.recipe} trains on {why}"]
    return []


def _ignores_augmentation(manifest: Manifest) -> str | None:
    if manifest.features:
        return "features that are computed once a picture"
    return "texts" if manifest.input.letters else None
