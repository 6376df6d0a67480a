"""Run by test_runtimes in a process of its own: weight decay and clipping beside Keras' own optimizers.

`python controls_check.py FOLDER` prints JSON: the largest difference of the keras runtime after five steps,
as a part of the largest change of a weight, and the same where Keras does not decay, or does not clip.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from apiary.learn.manifest import Manifest
from apiary.learn.runtimes import keras as runtime
from apiary.learn.runtimes.base import StepControls
from apiary.wire.blob import decode
from apiary_coordinator.export.probe import batch

RATE, DECAY, CLIP, STEPS = 0.01, 0.1, 0.5, 5


def keras_own(manifest: Manifest, initial: Any, *, decay: float | None, clip: float | None) -> dict[str, Any]:
    """The weights after the steps, by Keras' own optimizer alone."""
    import keras
    import tensorflow as tf

    model = runtime.build_model(manifest.keras)
    variables = dict(runtime.named_variables(model))
    for name, variable in variables.items():
        variable.assign(initial[name])
    options: dict[str, Any] = {"weight_decay": decay, "global_clipnorm": clip}
    if manifest.optimizer == "adam":
        optimizer = keras.optimizers.Adam(RATE, **options)
    else:
        optimizer = keras.optimizers.SGD(RATE, momentum=manifest.momentum, **options)
    trained = list(model.trainable_variables)
    optimizer.exclude_from_weight_decay(var_list=[v for v in trained if len(v.shape) < 2])
    optimizer.build(trained)
    both = runtime.with_logits(model)
    for i in range(STEPS):
        x, y, w = (tf.constant(v) for v in batch(manifest, i))
        with tf.GradientTape() as tape:
            losses = tf.nn.softmax_cross_entropy_with_logits(y, both(x, training=True)[0])
            loss = tf.reduce_sum(w * losses)
        optimizer.apply(tape.gradient(loss, trained))
    return {name: v.numpy() for name, v in variables.items()}


def main(folder: Path) -> None:
    """Print the differences."""
    runtime.prepare(1)
    manifest = Manifest.decode((folder / "manifest.json").read_bytes())
    initial = decode((folder / "initial.blob").read_bytes(), who="initial.blob").weights
    trainer = runtime.open_trainer(manifest, None)
    trainer.set_weights(initial)
    for i in range(STEPS):
        trainer.step(*batch(manifest, i), StepControls(RATE, weight_decay=DECAY, gradient_clip=CLIP))
    ours = trainer.get_weights()

    def apart(theirs: dict[str, Any]) -> float:
        moved = max(float(np.abs(t - initial[name]).max()) for name, t in theirs.items())
        return max(float(np.abs(t - ours[name]).max()) for name, t in theirs.items()) / moved

    both = keras_own(manifest, initial, decay=DECAY, clip=CLIP)
    without = {
        "decay": keras_own(manifest, initial, decay=None, clip=CLIP),
        "clip": keras_own(manifest, initial, decay=DECAY, clip=None),
    }
    print(json.dumps({"both": apart(both), **{f"no {k}": apart(v) for k, v in without.items()}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
