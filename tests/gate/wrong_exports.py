"""Trainers that are exported wrong on purpose, and what the gate finds in each. Imports TensorFlow.

`python -m tests.gate.wrong_exports RECIPE adam|sgd [OPTIONS as JSON] [NAME | !NAME ...]` prints a line of
JSON for each (or for those named, or all but those named): its name, and the message with which the gate
refuses it, or null where it lets it through. RECIPE is `edge_cnn`, or `vgg_bn` for what is wrong with dropout
and moments; of that the right one is tried in the keras runtime, too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from apiary.errors import ExportError
from apiary.learn.runtimes import litert
from apiary.learn.runtimes.keras import prepare
from apiary.wire.blob import encode
from apiary.wire.messages import Plan
from apiary_coordinator.export import convert, parity
from apiary_coordinator.export.build import build
from apiary_coordinator.export.trainer import TrainerModule
from apiary_coordinator.recipes.base import check_options, recipe

Change = Callable[[list[Any]], list[Any]]


def scaled(part: str, factor: float) -> type[TrainerModule]:
    """A module whose gradient of the last tensor of that kind is multiplied."""

    class Scaled(TrainerModule):
        def _gradients(self, x: Any, y: Any, w: Any, *noise: Any) -> tuple[Any, list[Any]]:
            loss, gradients = super()._gradients(x, y, w, *noise)
            names = [n for n in self.arguments.values() if n in self.trainable_names]
            wrong = max(i for i, name in enumerate(names) if name.endswith(part))
            return loss, [g * factor if i == wrong else g for i, g in enumerate(gradients)]

    return Scaled


class Zeroed(TrainerModule):
    """2 % of the largest tensor's gradient are zero."""

    def _gradients(self, x: Any, y: Any, w: Any, *noise: Any) -> tuple[Any, list[Any]]:
        loss, gradients = super()._gradients(x, y, w, *noise)
        sizes = [g.shape.num_elements() for g in gradients]
        wrong = sizes.index(max(sizes))
        flat = tf.reshape(gradients[wrong], [-1])
        kept = tf.concat([tf.ones(sizes[wrong] - sizes[wrong] // 50), tf.zeros(sizes[wrong] // 50)], 0)
        gradients[wrong] = tf.reshape(flat * kept, gradients[wrong].shape)
        return loss, gradients


class Shifted(TrainerModule):
    """The first padding is off by one: all pixels lie one further down and to the right."""

    def _gradients(self, x: Any, y: Any, w: Any, *noise: Any) -> tuple[Any, list[Any]]:
        return super()._gradients(tf.pad(x, [[0, 0], [1, 0], [1, 0], [0, 0]])[:, :-1, :-1], y, w, *noise)


class Unweighted(TrainerModule):
    """Samples of weight 0 count, too."""

    def _gradients(self, x: Any, y: Any, w: Any, *noise: Any) -> tuple[Any, list[Any]]:
        return super()._gradients(x, y, tf.ones_like(w) * tf.reduce_sum(w) / w.shape[0], *noise)


class Beta1(TrainerModule):
    beta_1 = 0.8


class Beta2(TrainerModule):
    beta_2 = 0.99


class Epsilon(TrainerModule):
    epsilon = 1e-5


class NotReset(TrainerModule):
    """`set_weights` leaves the moments as they are."""

    def _set(self, *values: Any) -> dict[str, Any]:
        slots, self._slots = self._slots, []
        out = super()._set(*values)
        self._slots = slots
        return out


class Pulled(TrainerModule):
    """The proximal term is 2 % too strong."""

    def _train(self, x: Any, y: Any, w: Any, lr: Any, mu: Any, *controls: Any) -> dict[str, Any]:
        return super()._train(x, y, w, lr, mu * 1.02, *controls)


class EachClipped(TrainerModule):
    """Each tensor's gradient is clipped by its own norm."""

    def _clipped(self, gradients: list[Any], most: Any) -> list[Any]:
        return [super(EachClipped, self)._clipped([g], most)[0] for g in gradients]


class LateClipped(TrainerModule):
    """The bound is 2 % too large."""

    def _clipped(self, gradients: list[Any], most: Any) -> list[Any]:
        return super()._clipped(gradients, most * 1.02)


class AllDecayed(TrainerModule):
    """Biases decay, too."""

    def _decay(self, share: Any) -> None:
        for v in self._trained:
            v.assign(v * (1.0 - share))


class NotDecayed(TrainerModule):
    def _decay(self, share: Any) -> None:
        pass


class DecayedByGradient(TrainerModule):
    """Decay is a part of the gradient, which Adam then scales: L2, not AdamW."""

    def _train(self, x: Any, y: Any, w: Any, lr: Any, mu: Any, *controls: Any) -> dict[str, Any]:
        decay, *others = controls
        self._l2 = decay
        return super()._train(x, y, w, lr, mu, tf.zeros_like(decay), *others)

    def _gradients(self, x: Any, y: Any, w: Any, *noise: Any) -> tuple[Any, list[Any]]:
        loss, gradients = super()._gradients(x, y, w, *noise)
        return loss, [
            g + self._l2 * v if len(v.shape) > 1 else g for g, v in zip(gradients, self._trained, strict=True)
        ]


class Decayed(TrainerModule):
    """Decay is 2 % too strong."""

    def _decay(self, share: Any) -> None:
        super()._decay(share * 1.02)


class NotScaled(TrainerModule):
    """Dropout leaves what it keeps as it is."""

    def _dropped(self, x: Any, noise: Any, rate: float) -> Any:
        return super()._dropped(x, noise, rate) * (1.0 - rate)


class MoreDropped(TrainerModule):
    """Dropout leaves 2 % more out than its rate."""

    def _dropped(self, x: Any, noise: Any, rate: float) -> Any:
        return super()._dropped(x, noise - 0.02, rate)


class FillerInMoments(TrainerModule):
    """Samples of weight 0 count in BatchNormalization's moments."""

    def _normalized(self, layer: Any, x: Any, counts: Any) -> Any:
        return super()._normalized(layer, x, tf.ones_like(counts))


class SlowStatistics(TrainerModule):
    """A step keeps 2 % more of the running moments than it should."""

    def _move_statistics(self, layer: Any, mean: Any, variance: Any) -> None:
        for moving, moment in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            kept = layer.momentum + 0.02 * (1.0 - layer.momentum)
            moving.value.assign(moving.value * kept + moment * (1.0 - kept))


class StandingStatistics(TrainerModule):
    def _move_statistics(self, layer: Any, mean: Any, variance: Any) -> None:
        pass


VGG: dict[str, type[TrainerModule]] = {
    "right": TrainerModule,
    "dropout not scaled": NotScaled,
    "2 % more dropped": MoreDropped,
    "filler in the moments": FillerInMoments,
    "statistics 2 % slow": SlowStatistics,
    "statistics that stand": StandingStatistics,
}
ADAM: dict[str, type[TrainerModule]] = {
    "right": TrainerModule,
    "a layer's gradient times 2": scaled("kernel", 2.0),
    "a layer's gradient times 1.02": scaled("kernel", 1.02),
    "the last bias's gradient times .9": scaled("bias", 0.9),
    "beta1 .8": Beta1,
    "beta2 .99": Beta2,
    "epsilon 1e-5": Epsilon,
    "2 % of a tensor zeroed": Zeroed,
    "padding off by one": Shifted,
    "moments not reset": NotReset,
    "filler counted": Unweighted,
    "proximal term times 1.02": Pulled,
    "each tensor clipped by itself": EachClipped,
    "clip times 1.02": LateClipped,
    "biases decay": AllDecayed,
    "no decay": NotDecayed,
    "decay times 1.02": Decayed,
    "decay in the gradient": DecayedByGradient,
}
_ADAM_ALONE = (Beta1, Beta2, Epsilon, LateClipped, AllDecayed, NotDecayed, Decayed, DecayedByGradient)
"""Its own, and what both optimizers have in common."""
SGD = {name: each for name, each in ADAM.items() if each not in _ADAM_ALONE}


def verdicts(
    name_of_recipe: str,
    optimizer: str,
    options: dict[str, Any],
    names: Sequence[str] = (),
    *,
    labels: int = 3,
    batch_size: int = 8,
) -> None:
    """Print what the gate says to each trainer of a recipe with these options."""
    every = VGG if name_of_recipe == "vgg_bn" else ADAM if optimizer == "adam" else SGD
    left_out = {name.removeprefix("!") for name in names if name.startswith("!")}
    chosen = [name for name in names if not name.startswith("!")] or [n for n in every if n not in left_out]
    plan = Plan.model_validate(
        {"batch_size": batch_size, "optimizer": optimizer, "weight_decay": 0.01, "gradient_clip": 1.0}
    )
    exported = build(name_of_recipe, options, [f"label-{i}" for i in range(labels)], plan)
    manifest = exported.manifest
    want = parity.expected(manifest, exported.initial)
    for name in chosen:
        kind = every[name]
        models = recipe(name_of_recipe).build(
            check_options(name_of_recipe, options), labels, base_weights=None, seed=0
        )
        module = kind(
            models.trained,
            batch_size=batch_size,
            optimizer=optimizer,
            momentum=plan.momentum,
            controls=manifest.controls,
        )
        found = None
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            (here / "manifest.json").write_bytes(manifest.encode())
            (here / "initial.blob").write_bytes(encode(exported.initial))
            (here / "trainer.tflite").write_bytes(convert.trainer_file(module))
            try:
                runtimes = [f"litert:{package}" for package in litert.packages()[:1]]
                if manifest.noise and name == "right":
                    runtimes.append("keras")
                for runtime in runtimes:
                    got = parity.ask(here, manifest, runtime, here / runtime.replace(":", "-"))
                    parity.compare(got, want, exported.initial, who=runtime)
            except ExportError as e:
                found = str(e)
        print(json.dumps([name, found]), flush=True)


if __name__ == "__main__":
    prepare(1)
    verdicts(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}, sys.argv[4:])
