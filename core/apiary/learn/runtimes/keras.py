"""Training with TensorFlow and Keras, for machines with 2 GB and more: the same maths, built from JSON."""

import contextlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from apiary.errors import ModelError
from apiary.learn.manifest import Manifest
from apiary.learn.runtimes.base import FeatureExtractor, StepControls, Trainer
from apiary.learn.training_pass import TrainingPass
from apiary.tensors import Array, Weights, differs

MAX_JSON_BYTES: Final = 2**20
MAX_NUMBER: Final = 2**20
"""Of any integer in an architecture: no layer has a million units."""
MAX_DEPTH: Final = 24
_LAYERS: Final = """
    Functional InputLayer Dense Conv2D DepthwiseConv2D SeparableConv2D ReLU LeakyReLU Activation Softmax
    GroupNormalization BatchNormalization LayerNormalization Rescaling GlobalAveragePooling2D
    GlobalMaxPooling2D MaxPooling2D AveragePooling2D ZeroPadding2D Flatten Reshape Add Concatenate Multiply
    GRU SimpleRNN Dropout
"""
_PARTS: Final = """
    GlorotUniform GlorotNormal HeNormal HeUniform LecunNormal Zeros Ones Constant RandomNormal RandomUniform
    TruncatedNormal Orthogonal VarianceScaling L1 L2 L1L2 DTypePolicy __keras_tensor__ __tuple__
"""
ALLOWED: Final = frozenset((_LAYERS + _PARTS).split())
"""Nothing that names a function: Lambda, TFSMLayer and their like stay out."""


def unavailable() -> str | None:
    """Why TensorFlow cannot be used here, or None. Does not import it."""
    missing = [name for name in ("tensorflow", "keras") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install 'tensorflow>=2.21,<2.22' (it takes 2 GB)"
    return None


def open_trainer(manifest: Manifest, trainer: Path | None, *, threads: int = 1) -> Trainer:
    """Build from `manifest.keras`; `trainer` is not read. Raises ModelError."""
    tf = prepare(threads)
    model = build_model(manifest.keras)
    shapes = {name: tuple(v.shape) for name, v in named_variables(model)}
    if why := differs(shapes, manifest.shapes):
        raise ModelError(f"the architecture of {manifest.recipe} is not that of its manifest: {why}")
    return _Trainer(tf, model, manifest)


def open_base(base: Path) -> FeatureExtractor:
    """The same `.tflite` as on other nodes, in TensorFlow's own interpreter. Raises ModelError."""
    from apiary.learn.runtimes.litert import Base

    tf = prepare(1)
    try:
        return Base(tf.lite.Interpreter(model_path=str(base), num_threads=1))
    except (ValueError, RuntimeError) as e:
        raise ModelError(f"model file {base} does not load: {str(e)[:300]}") from None


def prepare(threads: int) -> Any:
    """TensorFlow, quiet, without GPU, on so many threads, the same bits each time; to be called first."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # a GPU's sums differ from run to run
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    with contextlib.suppress(RuntimeError):  # it runs already: its threads were set by whoever came first
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    return tf


def build_model(architecture: str) -> Any:
    """The Keras model of a JSON architecture made of `ALLOWED` alone. Raises ModelError."""
    if not architecture:
        raise ModelError("the manifest holds no Keras architecture, which the keras runtime needs")
    if len(architecture) > MAX_JSON_BYTES:
        raise ModelError(f"the architecture has {len(architecture)} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        parsed = json.loads(architecture)
    except (ValueError, RecursionError) as e:
        raise ModelError(f"the architecture is not JSON: {str(e)[:100]}") from None
    _check(parsed, 0)
    import keras

    try:
        return keras.models.model_from_json(architecture)
    except Exception as e:  # Keras raises anything for a config that does not fit together
        raise ModelError(f"the architecture does not build: {type(e).__name__}: {str(e)[:200]}") from None


def named_variables(model: Any) -> list[tuple[str, Any]]:
    """Weight variables under stable names, `layer/kernel`: trained ones first, as Keras orders them."""
    prefix = f"{model.name}/"
    variables = [
        *model.trainable_variables,
        *(v for v in model.non_trainable_variables if v.dtype.startswith("float")),
    ]
    return [(v.path.removeprefix(prefix), v) for v in variables]


def with_logits(model: Any) -> Any:
    """The model with two outputs: what goes into its final softmax, and what comes out. Raises ModelError."""
    import keras

    last = model.layers[-1]
    is_softmax = getattr(getattr(last, "activation", None), "__name__", "") == "softmax"
    if not (isinstance(last, keras.layers.Activation) and is_softmax):
        raise ModelError(f"{model.name} ends in {type(last).__name__}, expected Activation('softmax')")
    return keras.Model(model.inputs, [last.input, last.output], name=model.name)


class _Trainer:
    def __init__(self, tf: Any, model: Any, manifest: Manifest):
        import keras

        self._tf, self._manifest = tf, manifest
        self._variables = dict(named_variables(model))
        trained = {t.name for t in manifest.tensors if t.trainable}
        self._trained = [v for name, v in self._variables.items() if name in trained]
        self._anchor = [tf.Variable(tf.zeros(v.shape)) for v in self._trained]
        self._optimizer = (
            keras.optimizers.Adam()
            if manifest.optimizer == "adam"
            else keras.optimizers.SGD(momentum=manifest.momentum)
        )
        self._optimizer.build(self._trained)
        both = with_logits(model)
        in_training = TrainingPass(both, moving=manifest.statistics)
        anchors = self._anchor

        def step(x: Any, y: Any, w: Any, numbers: Any, *noise: Any) -> Any:
            mu, decay, clip = tf.unstack(numbers)
            with tf.GradientTape() as tape:
                losses = tf.nn.softmax_cross_entropy_with_logits(y, in_training(x, w, *noise)[0])
                loss = tf.reduce_sum(w * losses)
            gradients = tape.gradient(loss, self._trained)
            pulled = [g + mu * (v - a) for g, v, a in zip(gradients, self._trained, anchors, strict=True)]
            if manifest.controls:
                # As Keras' own optimizers do, whose constants these are; here each round may have its own.
                scale = clip / tf.maximum(tf.linalg.global_norm(pulled), clip)
                pulled = [g * scale for g in pulled]
                for v in self._trained:
                    if len(v.shape) > 1:
                        v.assign(v * (1 - decay * self._optimizer.learning_rate))
            self._optimizer.apply(pulled)
            return loss

        self._step = tf.function(step)
        self._infer = tf.function(lambda x: both(x, training=False)[1])

    def set_weights(self, weights: Weights) -> None:
        if why := differs(weights.shapes, self._manifest.shapes):
            raise ModelError(f"weights of another model: {why}")
        for name, variable in self._variables.items():
            variable.assign(weights[name])
        for anchor, variable in zip(self._anchor, self._trained, strict=True):
            anchor.assign(variable.value)
        for slot in self._optimizer.variables:
            if slot is not self._optimizer.learning_rate:
                slot.assign(np.zeros(slot.shape, slot.dtype))

    def get_weights(self) -> Weights:
        return Weights({name: np.array(v.numpy(), np.float32) for name, v in self._variables.items()})

    def step(self, x: Array, y: Array, w: Array, controls: StepControls) -> float:
        self._optimizer.learning_rate.assign(controls.learning_rate)
        tensors = [self._tf.constant(v) for v in (x, y, w)]
        numbers = (controls.mu, controls.weight_decay, controls.clip)
        noise = [self._tf.constant(controls.noise(self._manifest))] if self._manifest.noise else []
        return float(self._step(*tensors, self._tf.constant(numbers, self._tf.float32), *noise))

    def infer(self, x: Array) -> Array:
        size, parts = self._manifest.batch_size, []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            # One shape, so that nothing is traced twice.
            full = np.resize(part, (size, *part.shape[1:]))
            parts.append(self._infer(self._tf.constant(full)).numpy()[: len(part)])
        return np.concatenate(parts) if parts else np.empty((0, len(self._manifest.labels)), np.float32)


def _check(value: Any, depth: int) -> None:
    """Refuse an architecture that names anything but allowed Keras classes."""
    if depth > MAX_DEPTH:
        raise ModelError(f"the architecture is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        name, module = value.get("class_name"), value.get("module")
        if "class_name" in value and name not in ALLOWED:
            raise ModelError(f"the architecture holds {str(name)[:60]!r}, which this node does not build")
        if module is not None and str(module).split(".", maxsplit=1)[0] != "keras":
            raise ModelError(f"the architecture names the module {str(module)[:60]!r}, expected Keras' own")
        if value.get("registered_name") not in (None, name):
            raise ModelError(
                f"the architecture holds the custom class {str(value['registered_name'])[:60]!r}"
            )
        for v in value.values():
            _check(v, depth + 1)
    elif isinstance(value, list):
        for v in value:
            _check(v, depth + 1)
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ModelError(f"the architecture holds the number {value}, at most {MAX_NUMBER} is built")
