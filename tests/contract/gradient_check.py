"""Run by test_runtimes in a process of its own: each builtin gradient beside TensorFlow's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import tensorflow as tf

from apiary.errors import ExportError
from apiary.learn.training_pass import TrainingPass
from apiary_coordinator.export.gradients import builtin_gradients

Function = Callable[..., Any]


def difference(function: Function, *shapes: tuple[int, ...]) -> float:
    """Largest relative difference of the gradients of a random projection of `function`."""
    inputs = [tf.random.stateless_normal(s, (1, i)) for i, s in enumerate(shapes)]

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def ours() -> list[Any]:
        with builtin_gradients():
            out = function(*inputs)
            loss = tf.reduce_sum(out * tf.random.stateless_normal(out.shape, (2, 2)))
        gradients: list[Any] = tf.gradients(loss, inputs)
        return gradients

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def theirs() -> list[Any]:
        out = function(*inputs)
        loss = tf.reduce_sum(out * tf.random.stateless_normal(out.shape, (2, 2)))
        gradients: list[Any] = tf.gradients(loss, inputs)
        return gradients

    before, mine, after = theirs(), ours(), theirs()
    # Outside of the context everything is as it was.
    assert all(bool(tf.reduce_all(a == b)) for a, b in zip(before, after, strict=True))
    assert any("Apiary" in str(op.node_def) for op in ours.get_concrete_function().graph.get_operations())
    assert not any(
        "Apiary" in str(op.node_def) for op in theirs.get_concrete_function().graph.get_operations()
    )
    return max(
        float(tf.reduce_max(tf.abs(a - b)) / (tf.reduce_max(tf.abs(b)) + 1e-9))
        for a, b in zip(mine, before, strict=True)
    )


def conv(stride: int, padding: str) -> Function:
    return lambda x, k: tf.nn.conv2d(x, k, stride, padding)


def depthwise(stride: int, padding: str) -> Function:
    return lambda x, k: tf.nn.depthwise_conv2d(x, k, [1, stride, stride, 1], padding)


FOUND = {
    "relu": difference(tf.nn.relu, (2, 5, 5, 3)),
    "relu6": difference(lambda x: tf.nn.relu6(4 * x), (2, 5, 5, 3)),
    "bias": difference(tf.nn.bias_add, (2, 5, 5, 3), (3,)),
    "conv same 1": difference(conv(1, "SAME"), (2, 8, 8, 3), (3, 3, 3, 4)),
    "conv same 2": difference(conv(2, "SAME"), (2, 8, 8, 3), (3, 3, 3, 4)),
    "conv same 2, odd": difference(conv(2, "SAME"), (2, 9, 7, 3), (3, 3, 3, 4)),
    "conv valid 2": difference(conv(2, "VALID"), (2, 9, 9, 3), (3, 3, 3, 4)),
    "conv 1x1": difference(conv(1, "SAME"), (2, 5, 5, 3), (1, 1, 3, 4)),
    "conv 5x5": difference(conv(1, "VALID"), (2, 8, 8, 3), (5, 5, 3, 4)),
    "depthwise 1": difference(depthwise(1, "SAME"), (2, 8, 8, 3), (3, 3, 3, 1)),
    "depthwise 2": difference(depthwise(2, "SAME"), (2, 8, 8, 3), (3, 3, 3, 1)),
    "depthwise valid": difference(depthwise(1, "VALID"), (2, 9, 9, 3), (3, 3, 3, 1)),
    "max pool": difference(lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), (2, 7, 8, 3)),
    "average pool": difference(lambda x: tf.nn.avg_pool2d(x, 2, 2, "VALID"), (2, 7, 8, 3)),
}
try:
    difference(lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"), (2, 8, 8, 3))
except ExportError as e:
    assert "windows that move by their size" in str(e)
else:
    raise AssertionError("overlapping windows were not refused")


def apart(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))


def of_training() -> dict[str, float]:
    """A training pass with filler beside Keras' own layers on the real samples alone."""
    import keras

    rng = np.random.default_rng(3)
    x = rng.standard_normal((6, 4, 4, 3)).astype(np.float32)
    x[4:] *= 50  # filler
    w = np.array([1, 2, 0.5, 1, 0, 0], np.float32) / 6
    noise = rng.random((6, 48), dtype=np.float32)

    def model(with_dropout: bool) -> Any:
        start = keras.Input((4, 4, 3))
        y = keras.layers.Dropout(0.25, name="drop")(start) if with_dropout else start
        return keras.Model(start, keras.layers.BatchNormalization(momentum=0.9, name="norm")(y))

    own, ours, standing = model(False), model(True), model(True)
    kept = (noise.reshape(x.shape) >= 0.25) / 0.75
    expected = own((x * kept)[:4], training=True)
    moving = TrainingPass(ours, moving={"norm/moving_mean", "norm/moving_variance"})
    assert moving.noise == 48
    out = moving(x, w, noise)
    frozen = TrainingPass(standing, moving=())(x, w, noise)
    norm = standing.get_layer("norm")
    return {
        "moments of the samples that count": apart(out[:4], expected),
        "statistics of them": max(
            apart(a, b)
            for a, b in zip(ours.non_trainable_variables[-2:], own.non_trainable_variables[-2:], strict=True)
        ),
        "statistics that stand": max(apart(norm.moving_mean, 0), apart(norm.moving_variance, 1)),
        "by statistics that stand": apart(frozen, x * kept / np.sqrt(1 + norm.epsilon)) / 100,
    }


FOUND |= of_training()
print(json.dumps(FOUND))
