"""Keras' own gradients for the export gate, in float64 and in float32. Imports TensorFlow."""

from typing import Any

import numpy as np
import tensorflow as tf

from apiary.learn.manifest import Manifest
from apiary.learn.runtimes.base import StepControls
from apiary.learn.runtimes.keras import build_model, named_variables, with_logits
from apiary.learn.training_pass import TrainingPass
from apiary.tensors import Array, Weights
from apiary_coordinator.export.probe import Gradient


class Reference:
    """The architecture of a manifest, built once more by Keras, with numbers of one precision."""

    def __init__(self, manifest: Manifest, precision: str):
        self._precision = precision
        model = build_model(manifest.keras.replace('"float32"', f'"{precision}"'))
        self._variables = dict(named_variables(model))
        self._trained = {t.name: self._variables[t.name] for t in manifest.tensors if t.trainable}
        both = with_logits(model)
        in_training = TrainingPass(both, moving=manifest.statistics)
        self._manifest = manifest

        def run(x: Any, y: Any, w: Any, *noise: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(
                    w * tf.nn.softmax_cross_entropy_with_logits(y, in_training(x, w, *noise)[0])
                )
            return loss, tape.gradient(loss, list(self._trained.values()))

        self._run = tf.function(run)
        self._infer = tf.function(lambda x: both(x, training=False)[1])

    def set_weights(self, weights: Weights) -> None:
        """Take these weights, float32 by tensor name."""
        for name, variable in self._variables.items():
            variable.assign(weights[name].astype(self._precision))

    def gradient(self, x: Array, y: Array, w: Array, noise_seed: int = 0) -> tuple[Gradient, float]:
        """The gradient of the weighted loss, float64 by tensor name, and the loss; the statistics move."""
        inputs = [x, y, w]
        if self._manifest.noise:
            inputs.append(StepControls(0.0, noise_seed=noise_seed).noise(self._manifest))
        loss, gradients = self._run(*(tf.constant(v.astype(self._precision)) for v in inputs))
        return dict(
            zip(self._trained, (g.numpy().astype(np.float64) for g in gradients), strict=True)
        ), float(loss)

    def statistics(self) -> Gradient:
        """The running moments as they are, float64 by tensor name."""
        return {n: self._variables[n].numpy().astype(np.float64) for n in sorted(self._manifest.statistics)}

    def infer(self, x: Array) -> Array:
        """Probabilities of a batch."""
        return np.asarray(self._infer(tf.constant(x.astype(self._precision))).numpy(), np.float32)
