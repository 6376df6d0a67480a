"""What the export gate reads of a trainer: gradients, optimizer, FedProx, losses, probabilities.

A trainer offers `set_weights`, `step`, `get_weights` and `infer`, no gradient. One step away from fresh slots
gives it: of SGD by a huge rate, of Adam with sample weights so small that a step is linear in the gradient.
`python -m apiary_coordinator.export.probe RUNTIME FOLDER OUT` writes one runtime's `Probe` to the folder OUT,
in a process of its own, because tflite-runtime and TensorFlow cannot live in one.
"""

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import ApiaryError
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes import choose, litert
from apiary.learn.runtimes.base import StepControls, Trainer
from apiary.tensors import Array, Weights
from apiary.wire.blob import decode

POINTS: Final = 2
"""Weights at which gradients are compared: those of the export, and others near them."""
BATCHES: Final = 5
"""A rectifier on the other side of zero in float32 shows in one batch of twelve, a wrong rule in each."""
FIRST, SECOND = 0, 1
"""The two batches that the optimizer's path is driven by."""

SGD_RATE: Final = 2.0**30
ADAM_RATE: Final = 2.0**60
ADAM_WEIGHT: Final = 2.0**-44
"""A power of two: no rounding. The gradient becomes some 1e-14, far below epsilon / sqrt(1 - beta2)."""
ADAM_STEP: Final = 0.01
ADAM_CLIP_WEIGHT: Final = 2.0**-16
DECAY_RATE, DECAY = 0.5, 0.125
MOVE: Final = 0.05
"""How far a step of SGD or of FedProx's check goes, in norms of the weights."""
SECOND_WEIGHT: Final = 4.0
PATH: Final = (FIRST, None, None, None, SECOND, None, None)
"""Batches of the optimizer's path; None is a batch of weight 0, where only moments move the weights."""
Gradient = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Probe:
    """One runtime's answers, in a folder: an `.npz` for each set of tensors, float32."""

    folder: Path
    manifest: Manifest

    def gradient(self, point: int, number: int) -> Gradient:
        """The gradient at that point on that batch, float64 by tensor name; trained tensors only."""
        return self._read(f"gradient-{point}-{number}")

    def statistics(self, point: int) -> Gradient:
        """The running moments after a step from that point on the first batch, float64 by tensor name."""
        return self._read(f"gradient-{point}-{FIRST}", self.manifest.statistics)

    def moved(self, name: str) -> Gradient:
        """The weights after a step of the path (`path-0` ...) or of FedProx (`prox-0`, `prox-1`), float64."""
        return self._read(name)

    def numbers(self) -> dict[str, Array]:
        """`losses` [points, batches], `probabilities` [points, B, C], and how the steps were taken.

        `kept`, `repeats` (0 or 1): weights come back as set; a second first step gives the same bits.
        `filler`: the largest part of a step by which other pixels of weight 0 change it.
        """
        with np.load(self.folder / "numbers.npz", allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}

    def _read(self, name: str, tensors: Collection[str] | None = None) -> Gradient:
        if tensors is None:
            tensors = {t.name for t in self.manifest.tensors if t.trainable}
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as kept:
            return {
                t.name: kept[t.argument].astype(np.float64)
                for t in self.manifest.tensors
                if t.name in tensors
            }


def batch(manifest: Manifest, seed: int) -> tuple[Array, Array, Array]:
    """A seeded batch: noise as pixels or features, every class, unlike weights, and a filler at the end."""
    rng = np.random.default_rng(seed)
    size, classes, side = manifest.batch_size, len(manifest.labels), manifest.input
    if manifest.features:
        x = rng.exponential(0.5, (size, manifest.features)).astype(np.float32)
    else:
        x = rng.integers(0, 256, (size, side.height, side.width, side.channels)).astype(np.float32)
    y = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, size)]
    w = rng.uniform(0.5, 1.5, size).astype(np.float32) / size
    if size > 1:
        w[-1] = 0
    return x, y, w


def point(initial: Weights, number: int) -> Weights:
    """The weights of a point: 0 is `initial`, others lie a tenth of each tensor's size away, seeded."""
    if number == 0:
        return initial
    rng = np.random.default_rng(1000 + number)

    def near(t: Array) -> Array:
        size = 0.1 * float(np.sqrt(np.mean(np.square(t)))) or 0.05
        return (t + size * rng.standard_normal(t.shape)).astype(np.float32)

    return Weights({name: near(t) for name, t in initial.items()})


def probe(trainer: Trainer, manifest: Manifest, initial: Weights, out: Path) -> Probe:
    """Ask one trainer everything, and write its answers to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    asked = _Asked(trainer, manifest, initial, out)
    losses = np.zeros((POINTS, BATCHES))
    probabilities = []
    for p in range(POINTS):
        at = point(initial, p)
        for b in range(BATCHES):
            gradient, losses[p, b] = asked.gradient(at, *batch(manifest, b), noise_seed=b)
            asked.write(f"gradient-{p}-{b}", gradient)
        trainer.set_weights(at)
        probabilities.append(trainer.infer(batch(manifest, 0)[0]))
    trainer.set_weights(initial)
    kept = all(np.array_equal(t, initial[name]) for name, t in trainer.get_weights().items())
    numbers = asked.path() | asked.prox() | {"kept": kept, "filler": asked.filler()}
    if "gradient_clip" in manifest.controls:
        numbers |= asked.clip()
    if "weight_decay" in manifest.controls:
        asked.decay()
    np.savez(out / "numbers.npz", losses=losses, probabilities=np.stack(probabilities), **numbers)
    return Probe(out, manifest)


class _Asked:
    """The questions, each from fresh slots."""

    def __init__(self, trainer: Trainer, manifest: Manifest, initial: Weights, out: Path):
        self._trainer, self._manifest, self._initial, self._out = trainer, manifest, initial, out
        self._adam = manifest.optimizer == "adam"
        self._trained = {t.name for t in manifest.tensors if t.trainable}

    def write(self, name: str, tensors: Weights) -> None:
        """Tensors by their argument: a name may hold what a file's name may not."""
        np.savez(self._out / f"{name}.npz", **{t.argument: tensors[t.name] for t in self._manifest.tensors})

    def gradient(
        self, at: Weights, x: Array, y: Array, w: Array, noise_seed: int = 0
    ) -> tuple[Weights, float]:
        """The gradient of the weighted loss at these weights, and the loss; of moments what they become."""
        scale = ADAM_WEIGHT if self._adam else 1.0
        rate = ADAM_RATE if self._adam else SGD_RATE
        self._trainer.set_weights(at)
        controls = StepControls(rate, noise_seed=noise_seed)
        loss = self._trainer.step(x, y, w * np.float32(scale), controls) / scale
        after = self._trainer.get_weights()

        def one(name: str) -> NDArray[np.float64]:
            if name in self._manifest.statistics:
                return after[name].astype(np.float64)
            u = (at[name].astype(np.float64) - after[name]) / rate
            if self._adam:  # the first step is u = g / (|g| + e), solved for g
                u = LINEAR_BELOW * u / (1 - np.abs(u))
            return u / scale

        return Weights({name: one(name) for name in at}), loss

    def path(self) -> dict[str, float]:
        """Write the weights after each step of the path, and the gradients that drive it."""
        t, (x, y, w) = self._trainer, batch(self._manifest, FIRST)
        first, _ = self.gradient(self._initial, x, y, w)
        rate = ADAM_STEP if self._adam else self._rate(first)
        batches = [batch(self._manifest, FIRST if number is None else number) for number in PATH]
        scales = [0.0 if n is None else SECOND_WEIGHT if n == SECOND else 1.0 for n in PATH]
        t.set_weights(self._initial)
        steps = []
        for (x, y, w), scale in zip(batches, scales, strict=True):
            t.step(x, y, w * np.float32(scale), StepControls(rate))
            steps.append(t.get_weights())
            self.write(f"path-{len(steps) - 1}", steps[-1])
        (x, y, w), at = batches[PATH.index(SECOND)], steps[PATH.index(SECOND) - 1]
        self.write("drive-0", first)
        self.write("drive-1", self.gradient(at, x, y, w * np.float32(SECOND_WEIGHT))[0])
        t.set_weights(self._initial)
        t.step(*batches[0], StepControls(rate))
        repeats = all(np.array_equal(v, steps[0][name]) for name, v in t.get_weights().items())
        return {"rate": rate, "repeats": repeats}

    def prox(self) -> dict[str, float]:
        """Write the weights after a step away from the anchor, and after one that FedProx alone drives."""
        t, (x, y, w) = self._trainer, batch(self._manifest, FIRST)
        gradient, _ = self.gradient(self._initial, x, y, w)
        scale, mu, rate = 1.0, 0.5, self._rate(gradient)
        if (
            self._adam
        ):  # linear in the gradient again: a pull as large as the gradient, both far below epsilon
            scale = ADAM_WEIGHT
            rate = 2.0 ** np.round(np.log2(self._rate(gradient) * LINEAR_BELOW / scale))
            mu = LINEAR_BELOW / rate
        t.set_weights(self._initial)
        t.step(x, y, w * np.float32(scale), StepControls(rate))
        self.write("prox-0", t.get_weights())
        t.step(x, y, w * np.float32(0), StepControls(rate, mu))
        self.write("prox-1", t.get_weights())
        return {"prox_rate": rate, "mu": mu, "prox_weight": scale}

    def clip(self) -> dict[str, float]:
        """Write the weights after a step whose gradient is twice as long as its bound, and half as long."""
        t, (x, y, w) = self._trainer, batch(self._manifest, FIRST)
        gradient, _ = self.gradient(self._initial, x, y, w)
        # Adam's first step hides a gradient's size, but where it is about `LINEAR_BELOW`.
        scale = ADAM_CLIP_WEIGHT if self._adam else 1.0
        norm = scale * self._of_trained(gradient).norm()
        rate = ADAM_STEP if self._adam else self._rate(gradient)
        for i, most in enumerate((norm / 2, norm * 2)):
            t.set_weights(self._initial)
            t.step(x, y, w * np.float32(scale), StepControls(rate, gradient_clip=most))
            self.write(f"clip-{i}", t.get_weights())
        return {"clip_weight": scale, "clip_rate": rate, "clip": norm / 2}

    def decay(self) -> None:
        """Write the weights after a step that decay alone drives."""
        t, (x, y, w) = self._trainer, batch(self._manifest, FIRST)
        t.set_weights(self._initial)
        t.step(x, y, w * np.float32(0), StepControls(DECAY_RATE, weight_decay=DECAY))
        self.write("decay-0", t.get_weights())

    def filler(self) -> float:
        """By how much of a step it differs where the pixels of the sample of weight 0 are others."""
        x, y, w = batch(self._manifest, FIRST)
        if len(w) == 1:
            return 0.0
        other = x.copy()
        other[-1] = other[-1].max() - other[-1]
        (here, _), (there, _) = (self.gradient(self._initial, each, y, w) for each in (x, other))
        moments = [_parts(found, self._manifest.statistics) for found in (here, there)]
        here, there = self._of_trained(here), self._of_trained(there)
        self._trainer.set_weights(self._initial)
        self._trainer.step(other, y, w, StepControls(0.0))
        # What a rate of 0 moves beside statistics.
        moved = self._trainer.get_weights() - self._initial
        moved = Weights({n: t for n, t in moved.items() if n not in self._manifest.statistics})
        apart = (there - here).norm() / (here.norm() or 1.0) + moved.norm()
        return apart + (moments[1] - moments[0]).norm() / (moments[0].norm() or 1.0)

    def _of_trained(self, found: Weights) -> Weights:
        return _parts(found, self._trained)

    def _rate(self, gradient: Weights) -> float:
        return MOVE * (self._initial.norm() or 1.0) / (self._of_trained(gradient).norm() or 1.0)


def _parts(found: Weights, names: Collection[str]) -> Weights:
    return Weights({name: found[name] for name in sorted(names)})


BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7
"""Adam as Kingma and Ba 2014 (arXiv:1412.6980), with Keras' epsilon."""
LINEAR_BELOW: Final = EPSILON / (1 - BETA_2) ** 0.5
"""In the first step Adam divides a gradient by its size plus this."""


def optimizer_steps(
    manifest: Manifest, gradients: list[NDArray[np.float64]], rate: float
) -> Iterator[NDArray[np.float64]]:
    """What an optimizer with fresh slots adds to a tensor for each gradient of it, in float64."""
    first = np.zeros_like(gradients[0])
    second = np.zeros_like(first)
    for step, g in enumerate(gradients, 1):
        if manifest.optimizer == "adam":
            first = BETA_1 * first + (1 - BETA_1) * g
            second = BETA_2 * second + (1 - BETA_2) * g * g
            corrected = rate * (1 - BETA_2**step) ** 0.5 / (1 - BETA_1**step)
            yield -corrected * first / (np.sqrt(second) + EPSILON)
        else:
            first = manifest.momentum * first - rate * g
            yield first.copy()


def main(runtime: str, folder: Path, out: Path) -> int:
    """Probe an export in `litert`, in one of its packages (`litert:tflite_runtime`), or in `keras`."""
    name, _, package = runtime.partition(":")
    try:
        manifest = Manifest.decode((folder / "manifest.json").read_bytes())
        initial = decode((folder / "initial.blob").read_bytes(), who="initial.blob").weights
        file = folder / "trainer.tflite"
        if package:
            trainer = litert.open_trainer(manifest, file, package=package)
        else:
            trainer = choose(name).open_trainer(manifest, file)
        probe(trainer, manifest, initial, out)
    except ApiaryError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
