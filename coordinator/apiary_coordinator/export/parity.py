"""The gate: an exported trainer must do what Keras does, in the runtime that nodes use, or it is refused.

Two processes: `python -m apiary_coordinator.export.parity RUNTIME FOLDER OUT.npz` takes the same steps in one
runtime, because tflite-runtime and TensorFlow cannot live in one process.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from apiary.errors import ApiaryError, ExportError
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes import choose
from apiary.learn.runtimes.base import Trainer
from apiary.process.child import run_to_end
from apiary.tensors import Array, Weights
from apiary.wire.blob import decode

STEPS: Final = 3
LEARNING_RATE: Final = 1e-3
MU: Final = 0.1
MAX_LOSS: Final = 1e-3
MAX_UPDATE: Final = 0.01
MAX_OVERALL: Final = 0.05
MAX_PROBABILITY: Final = 1e-3
LIGHT_TIMEOUT_S: Final = 120


@dataclass(frozen=True, slots=True)
class Steps:
    """What a runtime made of the gate's batches: losses, weights after, the last batch's probabilities."""

    losses: Array
    weights: Weights
    probabilities: Array


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences found.

    `loss` is relative. `update` is the worst tensor's: the upper quartile of what its numbers' updates differ
    by, over their root mean square. Adam blows the rounding of a gradient near zero up to a full step, so
    single numbers may differ; `overall`, the relative norm over all tensors, bounds how many.
    """

    loss: float
    update: float
    overall: float
    probability: float


def check(manifest: Manifest, full: Trainer, folder: Path) -> Parity:
    """Compare a folder's `trainer.tflite` with Keras. Raises ExportError where they differ."""
    initial = decode((folder / "initial.blob").read_bytes(), who="initial.blob").weights
    return compare(light(folder, manifest), take(full, manifest, initial), initial, who=manifest.recipe)


def take(trainer: Trainer, manifest: Manifest, initial: Weights) -> Steps:
    """The gate's steps on seeded batches, from `initial`. Raises ExportError if weights are not kept."""
    trainer.set_weights(initial)
    if any(not np.array_equal(t, initial[name]) for name, t in trainer.get_weights().items()):
        raise ExportError(f"{manifest.recipe}: the trainer does not keep the weights it is given")
    batches = [batch(manifest, seed) for seed in range(STEPS)]
    losses = [trainer.step(x, y, w, learning_rate=LEARNING_RATE, mu=MU) for x, y, w in batches]
    return Steps(np.array(losses, np.float32), trainer.get_weights(), trainer.infer(batches[-1][0]))


def light(folder: Path, manifest: Manifest, runtime: str = "litert") -> Steps:
    """The gate's steps in a process of its own. Raises ExportError with what it printed."""
    out = folder / "parity.npz"
    command = [sys.executable, "-m", "apiary_coordinator.export.parity", runtime, str(folder), str(out)]
    try:
        code, printed = run_to_end(command, timeout_s=LIGHT_TIMEOUT_S)
        if code is None:
            raise ExportError(f"{manifest.recipe}: {STEPS} steps in {runtime} took over {LIGHT_TIMEOUT_S} s")
        if code:
            raise ExportError(
                f"{manifest.recipe}: the exported trainer does not run in {runtime} "
                f"(exit {code}): {printed[-400:] or 'nothing'}"
            )
        with np.load(out, allow_pickle=False) as kept:
            return Steps(
                kept["losses"],
                Weights({t.name: kept[t.argument] for t in manifest.tensors}),
                kept["probabilities"],
            )
    finally:
        out.unlink(missing_ok=True)


def compare(got: Steps, want: Steps, initial: Weights, *, who: str) -> Parity:
    """How far `got` is from `want`. Raises ExportError past the bounds, or where a number is not finite."""
    moved, off = want.weights - initial, got.weights - want.weights
    updates = {name: _quartile(off[name], moved[name]) for name in off}
    worst = max(updates, key=lambda n: updates[n])
    found = Parity(
        loss=float(np.max(np.abs(got.losses - want.losses) / np.maximum(np.abs(want.losses), 1e-6))),
        update=updates[worst],
        overall=off.norm() / (moved.norm() or 1.0),
        probability=float(np.abs(got.probabilities - want.probabilities).max()),
    )
    # Written so that NaN fails. Measured on the recipes: losses 4e-7, updates 3e-5; a wrong gradient gives 1.
    if not (
        found.loss < MAX_LOSS
        and found.update < MAX_UPDATE
        and found.overall < MAX_OVERALL
        and found.probability < MAX_PROBABILITY
    ):
        raise ExportError(
            f"{who}: the exported trainer differs from Keras after {STEPS} steps: loss by {found.loss:.1e}, "
            f"updates by {found.update:.1e} (most in {worst}), {found.overall:.1e} overall, probabilities by "
            f"{found.probability:.1e}"
        )
    return found


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


def _quartile(off: Array, moved: Array) -> float:
    size = float(np.sqrt(np.mean(np.square(moved))))
    return float(np.percentile(np.abs(off), 75)) / (size or 1.0)


def main(runtime: str, folder: Path, out: Path) -> int:
    """Take the steps and store them."""
    try:
        manifest = Manifest.decode((folder / "manifest.json").read_bytes())
        initial = decode((folder / "initial.blob").read_bytes(), who="initial.blob").weights
        trainer = choose(runtime).open_trainer(manifest, folder / "trainer.tflite")
        steps = take(trainer, manifest, initial)
    except ApiaryError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    tensors = {t.argument: steps.weights[t.name] for t in manifest.tensors}
    np.savez(out, losses=steps.losses, probabilities=steps.probabilities, **tensors)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
