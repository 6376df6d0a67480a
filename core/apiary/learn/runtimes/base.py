"""What a runtime must offer. All give the same tensors, so they mix in one round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from apiary.learn.manifest import Manifest
from apiary.tensors import Array, Weights
from apiary.wire.messages import Plan

_UNBOUNDED: Final = 1e30
"""A gradient's bound where there is none: no norm in float32 is finite and longer."""


@dataclass(frozen=True, slots=True)
class StepControls:
    """What a step takes beside its batch; all but `learning_rate` and `mu` need the manifest's `controls`.

    `mu` pulls to the anchor (FedProx). The gradient, that pull included, is scaled down to the norm
    `gradient_clip` where it is longer; 0 is no bound. `weight_decay` is decoupled (Loshchilov and Hutter
    2019, arXiv:1711.05101): of tensors with two dimensions and more, times the learning rate. Dropout's noise
    follows from `noise_seed`.
    """

    learning_rate: float
    mu: float = 0.0
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    noise_seed: int = 0

    @classmethod
    def of(cls, plan: Plan) -> StepControls:
        """Those of a plan."""
        return cls(plan.learning_rate, plan.proximal_mu, plan.weight_decay, plan.gradient_clip)

    @property
    def clip(self) -> float:
        """The bound as a number that no gradient reaches where there is none."""
        return self.gradient_clip or _UNBOUNDED

    def noise(self, manifest: Manifest) -> Array:
        """Dropout's noise for one step, float32[B, n] in [0, 1); the same in every runtime."""
        rng = np.random.default_rng(self.noise_seed)
        return rng.random((manifest.batch_size, manifest.noise), dtype=np.float32)


class Trainer(Protocol):
    """A model that can be trained one batch at a time, in one thread, bit for bit the same each time."""

    def set_weights(self, weights: Weights) -> None:
        """Take these weights, zero the optimizer's state and make them the anchor of FedProx's term."""

    def get_weights(self) -> Weights:
        """The weights as they are now, in the manifest's order."""

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
        """One optimizer step on exactly `manifest.batch_size` samples.

        `x` float32[B, ...] as the manifest's input (pixels 0..255, or features), `y` float32[B, C] one-hot,
        `w` float32[B] weight of each sample in the loss: 0 for filler, the rest sum to 1 unless classes are
        weighted. Returns the weighted sum of cross entropies.
        """

    def infer(self, x: Array) -> Array:
        """Class probabilities float32[N, C] for any number of samples."""


class FeatureExtractor(Protocol):
    """The frozen base: one picture float32[H, W, C], 0..255, to float32[features]."""

    def features(self, picture: Array) -> Array:
        """Features of one picture."""


class Runtime(Protocol):
    """A plug-in module of `apiary.learn.runtimes` has these three functions."""

    def unavailable(self) -> str | None:
        """Why this runtime cannot be used on this machine and how to mend it, or None."""

    def open_trainer(self, manifest: Manifest, trainer: Path | None, *, threads: int = 1) -> Trainer:
        """Load a trainer from its `.tflite` file (the keras runtime builds from `manifest.keras`)."""

    def open_base(self, base: Path) -> FeatureExtractor:
        """Load a frozen base from its `.tflite` file."""
