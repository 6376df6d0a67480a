"""Keras to `.tflite`, builtin operations only."""

import collections
import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from apiary.errors import ExportError
from apiary.learn.runtimes.litert import quiet
from apiary_coordinator.export.trainer import TrainerModule

CALIBRATION_PICTURES: Final = 100
"""Representative pictures that are used at most; TensorFlow's guide asks for some hundred."""


def trainer_file(module: TrainerModule) -> bytes:
    """The module's four signatures as one file. Raises ExportError."""
    with tempfile.TemporaryDirectory() as folder, _explained("the training step"):
        concrete = {name: f.get_concrete_function() for name, f in module.functions.items()}
        # The gradients are in the graph already; saving the rules beside it would ask for functions of them.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, signatures=concrete, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(concrete))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.experimental_enable_resource_variables = True
        return _checked(converter.convert(), "the training step")


def inference_file(model: Any, *, half: bool = False) -> bytes:
    """float32[1, H, W, C], pixels 0..255, to float32[1, ...]. `half` stores weights in 16 bits."""
    with _explained(model.name):
        converter = _frozen(model)
        if half:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        return _checked(converter.convert(), model.name)


def int8_file(model: Any, pictures: NDArray[np.uint8]) -> bytes:
    """Weights and activations in 8 bits; uint8[1, H, W, C] pixels in, uint8[1, C] probabilities * 256 out.

    `pictures` uint8[N, H, W, C] set the ranges.
    """
    with _explained(model.name):
        converter = _frozen(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _samples(pictures)
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
        return _checked(converter.convert(), model.name)


def operations(file: bytes) -> dict[str, int]:
    """How often each operation occurs; custom ones as `CUSTOM:name`."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file, 0)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    found: collections.Counter[str] = collections.Counter()
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = code.customCode
            name = names.get(number, str(number))
            found[f"CUSTOM:{custom.decode()}" if name == "CUSTOM" else name] += 1
    return dict(sorted(found.items()))


def _frozen(model: Any) -> Any:
    """A converter on the model with its variables made constants: left as variables, they come out unset."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32, name="picture")
    concrete = tf.function(lambda picture: model(picture, training=False)).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(concrete)
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen])


def _samples(pictures: NDArray[np.uint8]) -> Iterator[list[NDArray[np.float32]]]:
    """Pictures spread over the set, and black and white ones: then a pixel's scale is 1, its zero 0."""
    chosen = np.unique(
        np.linspace(0, len(pictures) - 1, min(len(pictures), CALIBRATION_PICTURES)).astype(int)
    )
    shape = (1, *pictures.shape[1:])
    yield [np.zeros(shape, np.float32)]
    yield [np.full(shape, 255, np.float32)]
    for i in chosen:
        yield [pictures[i : i + 1].astype(np.float32)]


def _checked(file: bytes, what: str) -> bytes:
    alien = [name for name in operations(file) if name.startswith(("CUSTOM", "FLEX"))]
    if alien:
        raise ExportError(f"{what} needs operations that no light runtime has: {', '.join(alien)}")
    return file


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        with quiet():  # the converter's C++ side notes its settings
            yield
    except ExportError:
        raise
    except Exception as e:  # the converter raises its own and RuntimeError, with pages of text
        first = next((line for line in str(e).splitlines() if "error:" in line), str(e)[:300])
        raise ExportError(f"{what} does not convert: {first.strip()[:400]}") from e
