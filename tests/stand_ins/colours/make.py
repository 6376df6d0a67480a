"""Makes the two models beside it, 8 high and 10 wide, without training: the strongest colour wins.

They are kept, because converting takes TensorFlow: `python tests/stand_ins/colours/make.py` makes them anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent


@tf.function(input_signature=[tf.TensorSpec([1, 8, 10, 3], tf.float32)])  # type: ignore[untyped-decorator]  # TensorFlow has no types
def colour(x: Any) -> Any:
    return tf.nn.softmax(tf.reduce_mean(x, [1, 2]) / 64.0)


def pictures() -> Iterator[list[Any]]:
    for value in np.random.default_rng(0).integers(0, 256, (20, 1, 1, 1, 3)):
        yield [np.broadcast_to(value, (1, 8, 10, 3)).astype(np.float32)]


def main() -> None:
    module = tf.Module()
    module.f = colour
    for name in ("model.tflite", "model_int8.tflite"):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([colour.get_concrete_function()], module)
        if name == "model_int8.tflite":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = pictures
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        (HERE / name).write_bytes(converter.convert())


if __name__ == "__main__":
    main()
