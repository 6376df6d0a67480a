"""The gate: an exported trainer must do what Keras does, in each runtime that nodes use, or it is refused.

Gradients are compared one by one with Keras in float64, then the optimizer with its formula on gradients of
the same runtime. Steps are not chained against Keras: a rectifier's input within rounding of zero falls on
either side of it, and Adam turns a gradient of rounding size into a full step, so that a right export could
differ from Keras in float32 as much as Keras from itself in float64, while Adam hid a gradient's factor.
`python -m apiary_coordinator.export.parity FOLDER PROBE...` compares probes that another machine took.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import ExportError
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes import litert
from apiary.process.child import run_to_end
from apiary.tensors import Weights
from apiary.wire.blob import decode
from apiary_coordinator.export import probe
from apiary_coordinator.export.probe import Gradient, Probe

MAX_GRADIENT: Final = 4e-3
"""Of a tensor's gradient, the lower quartile over batches. Right: up to 1.2e-4, 2 % of a rule wrong: 2e-2.

A rectifier's input within rounding of zero may fall on its other side: of 128x128 pixels and 64 samples that
happens in most batches (up to 3.5e-3 each, measured), of few in nearly none. A wrong rule shows in each."""
QUARTILE: Final = 0.25
TIMES_OWN: Final = 10.0
"""Or so many times the error of Keras in float32: an ill-conditioned network is not refused."""
MAX_IN_ONE_BATCH: Final = 0.2
MAX_OPTIMIZER: Final = 1e-3
MAX_PROX: Final = 1e-3
MAX_CONTROLS: Final = 1e-3
MAX_STATISTICS: Final = 1e-3
MAX_LOSS: Final = 1e-4
MAX_PROBABILITY: Final = 1e-4
MAX_FILLER: Final = 1e-4
SMALL: Final = 1e-6
"""A tensor's gradient counts from this part of the whole gradient on, by its share of the numbers."""
ROUNDING: Final = 2.0**-22
"""Of a weight, by which a step in float32 may be off whatever the rule."""
TIMEOUT_S: Final = 900


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a runtime is from Keras, each relative; the bounds are this module's constants.

    `gradient` is the worst tensor's lower quartile over batches, divided by `TIMES_OWN` times the error of
    Keras in float32 over `MAX_GRADIENT` where that is above 1; `one_batch` the worst of all, as it is.
    """

    gradient: float
    one_batch: float
    optimizer: float
    prox: float
    loss: float
    probability: float
    filler: float
    controls: float = 0.0
    statistics: float = 0.0

    def __str__(self) -> str:
        return ", ".join(f"{f.name.replace('_', ' ')} {getattr(self, f.name):.0e}" for f in fields(self))


@dataclass(frozen=True, slots=True)
class Expected:
    """Keras' answers at each point and batch: gradients in float64, and how far float32 is from them."""

    gradients: dict[tuple[int, int], Gradient]
    own: dict[str, float]
    losses: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    statistics: list[Gradient]
    """Running moments at each point, after a step on the first batch."""


def check(manifest: Manifest, folder: Path) -> dict[str, Parity]:
    """Compare a folder's `trainer.tflite` in each light package here with Keras. Raises ExportError.

    Imports TensorFlow.
    """
    initial = decode((folder / "initial.blob").read_bytes(), who="initial.blob").weights
    want = expected(manifest, initial)
    found = {}
    for package in litert.packages():
        with TemporaryDirectory(dir=folder, prefix="parity-") as out:
            got = ask(folder, manifest, f"litert:{package}", Path(out))
            found[package] = compare(got, want, initial, who=f"{manifest.recipe} in {package}")
    if not found:
        raise ExportError(
            "no light runtime is installed here to compare the export in: pip install 'apiary-fl[edge]'"
        )
    return found


def expected(manifest: Manifest, initial: Weights) -> Expected:
    """Ask Keras, in float64 and in float32. Imports TensorFlow."""
    from apiary_coordinator.export.reference import Reference

    exact, rounded = Reference(manifest, "float64"), Reference(manifest, "float32")
    gradients, losses, probabilities = {}, np.zeros((probe.POINTS, probe.BATCHES)), []
    statistics = []
    own: dict[str, list[float]] = {}
    for p in range(probe.POINTS):
        at = probe.point(initial, p)
        exact.set_weights(at)
        rounded.set_weights(at)
        for b in range(probe.BATCHES):
            samples = probe.batch(manifest, b)
            gradients[p, b], losses[p, b] = exact.gradient(*samples, noise_seed=b)
            for name, off in _apart(rounded.gradient(*samples, noise_seed=b)[0], gradients[p, b]).items():
                own.setdefault(name, []).append(off)
            if b == probe.FIRST:
                statistics.append(exact.statistics())
        exact.set_weights(at)
        probabilities.append(exact.infer(probe.batch(manifest, 0)[0]))
    usual = {n: _quartile(o) for n, o in own.items()}
    return Expected(gradients, usual, losses, np.stack(probabilities), statistics)


def ask(folder: Path, manifest: Manifest, runtime: str, out: Path) -> Probe:
    """Probe an export in a process of its own: `litert:PACKAGE` or `keras`. Raises ExportError."""
    command = [sys.executable, "-m", "apiary_coordinator.export.probe", runtime, str(folder), str(out)]
    code, printed = run_to_end(command, timeout_s=TIMEOUT_S)
    if code is None:
        raise ExportError(
            f"{manifest.recipe}: the steps of the export's check in {runtime} took over {TIMEOUT_S} s"
        )
    if code:
        raise ExportError(
            f"{manifest.recipe}: the exported trainer does not run in {runtime} "
            f"(exit {code}): {printed[-400:] or 'nothing'}"
        )
    return Probe(out, manifest)


def compare(got: Probe, want: Expected, initial: Weights, *, who: str) -> Parity:
    """How far a runtime is from Keras. Raises ExportError past a bound, or where a number is not finite."""
    numbers = got.numbers()
    if not numbers["kept"]:
        raise ExportError(f"{who}: the exported trainer does not keep the weights that it is given")
    if not numbers["repeats"]:
        raise ExportError(
            f"{who}: the exported trainer takes another first step after others than before them: "
            f"set_weights must reset the optimizer"
        )
    gradient, one_batch, worst = _gradients(got, want)
    optimizer, moved = _optimizer(got, numbers, initial)
    prox, pulled = _prox(got, numbers, initial)
    controls, controlled = max(_clip(got, numbers, initial), _decay(got, initial), key=_nan_first)
    statistics, counted = _statistics(got, want, initial)
    found = Parity(
        gradient,
        one_batch,
        optimizer,
        prox,
        loss=_largest(np.abs(numbers["losses"] - want.losses) / np.maximum(np.abs(want.losses), 1e-6)),
        probability=_largest(np.abs(numbers["probabilities"] - want.probabilities)),
        filler=float(numbers["filler"]),
        controls=controls,
        statistics=statistics,
    )
    bounds = {
        "gradient": (MAX_GRADIENT, f"the gradient, most in {worst}"),
        "one_batch": (MAX_IN_ONE_BATCH, f"the gradient of one batch, most in {worst}"),
        "optimizer": (MAX_OPTIMIZER, f"{got.manifest.optimizer}'s steps, most in {moved}"),
        "prox": (MAX_PROX, f"the proximal term, most in {pulled}"),
        "controls": (MAX_CONTROLS, controlled),
        "statistics": (MAX_STATISTICS, f"running moments, most in {counted}"),
        "loss": (MAX_LOSS, "the loss"),
        "probability": (MAX_PROBABILITY, "the probabilities"),
        "filler": (MAX_FILLER, "what samples of weight 0 change (a layer that ignores weights?)"),
    }
    for name, (most, what) in bounds.items():
        if not getattr(found, name) < most:  # written so that NaN is refused
            raise ExportError(f"{who}: the exported trainer differs from Keras in {what} ({found})")
    return found


def _gradients(got: Probe, want: Expected) -> tuple[float, float, str]:
    """The worst tensor's lower quartile over batches, the worst of any batch, and that tensor."""
    apart: dict[str, list[float]] = {}
    for (p, b), exact in want.gradients.items():
        for name, off in _apart(got.gradient(p, b), exact).items():
            apart.setdefault(name, []).append(off)

    def usual(name: str) -> float:
        return _quartile(apart[name]) / max(1.0, TIMES_OWN * want.own[name] / MAX_GRADIENT)

    worst = _first(apart, usual)
    return usual(worst), _largest(np.array(list(apart.values()))), worst


def _quartile(errors: list[float]) -> float:
    """The third smallest of ten; NaN where one is."""
    return float(np.quantile(errors, QUARTILE, method="lower"))


def _apart(got: Gradient, exact: Gradient) -> dict[str, float]:
    """Per tensor |got - exact| / (|exact| + SMALL |all| sqrt(n / N)), Euclidean norms."""
    whole = float(np.sqrt(sum(np.sum(np.square(g)) for g in exact.values())))
    count = sum(g.size for g in exact.values())
    return {
        name: float(
            np.linalg.norm(got[name] - g)
            / ((np.linalg.norm(g) + SMALL * whole * (g.size / count) ** 0.5) or 1.0)
        )
        for name, g in exact.items()
    }


def _optimizer(got: Probe, numbers: dict[str, NDArray[np.float32]], initial: Weights) -> tuple[float, str]:
    """By how much the path's steps differ from the optimizer's formula, in its largest step; per tensor."""
    drives, rate = iter((got.moved("drive-0"), got.moved("drive-1"))), float(numbers["rate"])
    zero = {name: np.zeros_like(initial[name], np.float64) for name in _trained(got.manifest)}
    driven = [zero if number is None else next(drives) for number in probe.PATH]
    at = [{n: initial[n].astype(np.float64) for n in zero}]
    at += [got.moved(f"path-{i}") for i in range(len(probe.PATH))]

    def off(name: str) -> float:
        steps = list(probe.optimizer_steps(got.manifest, [g[name] for g in driven], rate))
        largest = max(float(np.linalg.norm(s)) for s in steps)
        apart = [
            _beyond(after[name] - before[name] - step, after[name], largest)
            for before, after, step in zip(at, at[1:], steps, strict=False)
        ]
        return _largest(np.array(apart))  # Python's max passes over NaN

    worst = _first(zero, off)
    return off(worst), worst


def _prox(got: Probe, numbers: dict[str, NDArray[np.float32]], initial: Weights) -> tuple[float, str]:
    """By how much FedProx's step differs from its formula, in the step away from the anchor; per tensor."""
    rate, mu, weight = (float(numbers[n]) for n in ("prox_rate", "mu", "prox_weight"))
    away, back, driven = got.moved("prox-0"), got.moved("prox-1"), got.moved("drive-0")

    def off(name: str) -> float:
        distance = away[name] - initial[name]
        *_, step = probe.optimizer_steps(got.manifest, [driven[name] * weight, mu * distance], rate)
        return _beyond(back[name] - away[name] - step, back[name], float(np.linalg.norm(distance)))

    worst = _first(away, off)
    return off(worst), worst


def _clip(got: Probe, numbers: dict[str, NDArray[np.float32]], initial: Weights) -> tuple[float, str]:
    """By how much steps with a bound on the gradient differ from the optimizer's formula; per tensor."""
    if "gradient_clip" not in got.manifest.controls:
        return 0.0, ""
    rate, weight, most = (float(numbers[n]) for n in ("clip_rate", "clip_weight", "clip"))
    driven = {name: g * weight for name, g in got.moved("drive-0").items()}
    norm = float(np.sqrt(sum(np.sum(np.square(g)) for g in driven.values())))
    halved, whole = got.moved("clip-0"), got.moved("clip-1")

    def off(name: str) -> float:
        start, found = initial[name].astype(np.float64), []
        for after, scale in ((halved, most / norm), (whole, 1.0)):
            (step,) = probe.optimizer_steps(got.manifest, [driven[name] * scale], rate)
            found.append(_beyond(after[name] - start - step, after[name], float(np.linalg.norm(step))))
        return _largest(np.array(found))

    worst = _first(driven, off)
    return off(worst), f"what clips a gradient, most in {worst}"


def _decay(got: Probe, initial: Weights) -> tuple[float, str]:
    """By how much a step of decay alone differs from its formula, in that step; per tensor."""
    if "weight_decay" not in got.manifest.controls:
        return 0.0, ""
    after = got.moved("decay-0")
    whole = float(np.sqrt(sum(np.sum(np.square(initial[name])) for name in after)))

    def off(name: str) -> float:
        start = initial[name].astype(np.float64)
        kept = 1 - probe.DECAY_RATE * probe.DECAY if start.ndim > 1 else 1.0
        largest = probe.DECAY_RATE * probe.DECAY * (float(np.linalg.norm(start)) or whole)
        return _beyond(after[name] - kept * start, after[name], largest)

    worst = _first(after, off)
    return off(worst), f"the decay of weights, most in {worst}"


def _statistics(got: Probe, want: Expected, initial: Weights) -> tuple[float, str]:
    """By how much running moments differ from Keras' after a step, in what it moved them; per tensor."""
    if not got.manifest.statistics:
        return 0.0, ""
    apart = dict.fromkeys(got.manifest.statistics, 0.0)
    for p, exact in enumerate(want.statistics):
        found, start = got.statistics(p), probe.point(initial, p)
        for name, moments in exact.items():
            largest = float(np.linalg.norm(moments - start[name]))
            off = _beyond(found[name] - moments, moments, largest)
            apart[name] = max(apart[name], off, key=lambda far: _nan_first((far, name)))
    worst = max(apart, key=lambda name: _nan_first((apart[name], name)))
    return apart[worst], worst


def _beyond(off: NDArray[np.float64], weights: NDArray[np.float64], largest: float) -> float:
    """A difference beyond the rounding of the weights themselves, as a part of `largest`."""
    beyond = float(np.linalg.norm(off)) - ROUNDING * float(np.linalg.norm(weights))
    if beyond <= 0:
        return 0.0
    return beyond / largest if largest else float("inf")


def _first(names: Gradient | dict[str, list[float]], how_far: Callable[[str], float]) -> str:
    """The name that is furthest, one that is not a number before all."""
    return max(names, key=lambda n: _nan_first((how_far(n), n)))


def _nan_first(found: tuple[float, str]) -> float:
    return np.inf if np.isnan(found[0]) else found[0]


def _largest(values: NDArray[np.float64]) -> float:
    return float(np.max(values))


def _trained(manifest: Manifest) -> list[str]:
    return [t.name for t in manifest.tensors if t.trainable]


def main(folder: Path, probes: Sequence[Path]) -> int:
    """Print a line of JSON for each probe of the export in `folder`: its differences, or `error`."""
    from apiary.learn.runtimes.keras import prepare

    prepare(1)
    manifest = Manifest.decode((folder / "manifest.json").read_bytes())
    initial = decode((folder / "initial.blob").read_bytes(), who="initial.blob").weights
    want = expected(manifest, initial)
    for each in probes:
        try:
            print(json.dumps(asdict(compare(Probe(each, manifest), want, initial, who=each.name))))
        except ExportError as e:
            print(json.dumps({"error": str(e)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]]))
