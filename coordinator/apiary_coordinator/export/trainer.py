"""A Keras model as a `tf.Module` that trains itself: what becomes `trainer.tflite`."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Final

import tensorflow as tf

from apiary.errors import ExportError, SettingsError
from apiary.learn.manifest import MAX_NOISE, Control, parts
from apiary.learn.runtimes.keras import named_variables, with_logits
from apiary.learn.training_pass import TrainingPass
from apiary_coordinator.export.gradients import builtin_gradients
from apiary_coordinator.export.probe import BETA_1, BETA_2, EPSILON

Tensor = Any
INFER_BATCH: Final = 1
"""Each signature has memory of its own: at 96x96x3, 16 MB for 16 pictures, and no faster."""
INFER_ROWS: Final = 8
"""Features of a base are small; a dense head takes eight of them as fast as one."""


class TrainerModule(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """Signatures `train`, `infer`, `get_weights`, `set_weights`, each of a fixed batch.

    train(x[B, ...], y[B, C], w[B], lr[1], mu[1]) -> loss[1]; infer(x[b, ...]) -> prob[b, C];
    set_weights(p000, p001, ...) -> ok[1]; get_weights() -> p000, p001, ...: `arguments` names their tensors.
    Each of `controls` is an input [1] of train, too; so is noise[B, n] where the model has dropout. Of the
    model only what `train` names is trained, and of that the tensors `fixed` stay as they are.
    """

    beta_1, beta_2, epsilon = BETA_1, BETA_2, EPSILON

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int,
        optimizer: str,
        momentum: float,
        controls: tuple[Control, ...] = (),
        train: Sequence[str] = (),
        fixed: Collection[str] = (),
    ):
        super().__init__()
        self._controls = controls
        self._model, self._optimizer, self._momentum = with_logits(model), optimizer, momentum
        named = named_variables(model)
        self.sent_names = frozenset(parts(train, [name for name, _ in named])) - frozenset(fixed)
        self._in_training = TrainingPass(
            self._model, moving=self.sent_names, drop=self._dropped, normalize=self._normalized
        )
        self.noise = self._in_training.noise
        if self.noise > MAX_NOISE:
            raise ExportError(
                f"dropout takes {self.noise} numbers a sample, at most {MAX_NOISE} are made; "
                "leave fewer or smaller layers out"
            )
        self._all = [v.value for _, v in named]
        self._trained = [v.value for name, v in named if v.trainable and name in self.sent_names]
        if not self._trained:
            raise SettingsError(f"run.train: {', '.join(train)} names nothing that is trained")
        self.arguments = {f"p{i:03d}": name for i, (name, _) in enumerate(named)}
        self.trainable_names = {name for name, v in named if v.trainable and name in self.sent_names}
        slots = 2 if optimizer == "adam" else 1 if momentum else 0
        self._slots = [[tf.Variable(tf.zeros_like(v)) for v in self._trained] for _ in range(slots)]
        self._anchor = [tf.Variable(tf.zeros_like(v)) for v in self._trained]
        # One number, but of rank 1: LiteRT on aarch64 crashed on rank 0.
        self._steps = tf.Variable([0.0])
        self.functions = self._signatures(list(model.input_shape[1:]), model.output_shape[-1], batch_size)

    def _signatures(self, sample: list[int], classes: int, batch: int) -> dict[str, Any]:
        def spec(shape: Any, name: str) -> tf.TensorSpec:
            return tf.TensorSpec(shape, tf.float32, name=name)

        inferred = min(batch, INFER_ROWS if len(sample) == 1 else INFER_BATCH)
        one = [spec([1], name) for name in ("lr", "mu", *self._controls)]
        batch_of = [spec([batch, *sample], "x"), spec([batch, classes], "y"), spec([batch], "w")]
        noise = [spec([batch, self.noise], "noise")] if self.noise else []
        parameters = [spec(v.shape, k) for k, v in zip(self.arguments, self._all, strict=True)]
        return {
            "train": tf.function(self._train, input_signature=batch_of + one + noise),
            "infer": tf.function(self._infer, input_signature=[spec([inferred, *sample], "x")]),
            "get_weights": tf.function(self._get, input_signature=[]),
            "set_weights": tf.function(self._set, input_signature=parameters),
        }

    def _train(
        self, x: Tensor, y: Tensor, w: Tensor, lr: Tensor, mu: Tensor, *more: Tensor
    ) -> dict[str, Tensor]:
        controls, noise = more[: len(self._controls)], more[len(self._controls) :]
        given = dict(zip(self._controls, controls, strict=True))
        loss, gradients = self._gradients(x, y, w, *noise)
        # FedProx (Li et al. 2020, arXiv:1812.06127): mu/2 |v - anchor|^2 holds a node near the global model.
        gradients = [g + mu * (v - a) for g, v, a in zip(gradients, self._trained, self._anchor, strict=True)]
        if "gradient_clip" in given:
            gradients = self._clipped(gradients, given["gradient_clip"])
        if "weight_decay" in given:
            self._decay(given["weight_decay"] * lr)
        if self._optimizer == "adam":
            self._adam(gradients, lr)
        else:
            self._sgd(gradients, lr)
        return {"loss": tf.reshape(loss, [1])}

    def _gradients(self, x: Tensor, y: Tensor, w: Tensor, *noise: Tensor) -> tuple[Tensor, list[Tensor]]:
        with builtin_gradients():
            logits, _ = self._in_training(x, w, *noise)
            # The fused cross entropy has a gradient that TFLite lacks; this one is log_softmax alone.
            loss = -tf.reduce_sum(w * tf.reduce_sum(y * tf.nn.log_softmax(logits), -1))
        return loss, tf.gradients(loss, self._trained)

    def _dropped(self, x: Tensor, noise: Tensor, rate: float) -> Tensor:
        return x * (tf.cast(noise >= rate, x.dtype) * (1.0 / (1.0 - rate)))

    def _normalized(self, layer: Any, x: Tensor, counts: Tensor) -> Tensor:
        """By masked moments, as Keras' own; of a batch in which no sample counts, by zeros."""
        if layer.axis not in (-1, len(x.shape) - 1) or layer.renorm:
            raise ExportError(f"{layer.name}: only BatchNormalization of the last axis can be exported")
        share = tf.reshape(tf.cast(counts, x.dtype), [-1, *(1 for _ in x.shape[1:])])
        share /= tf.maximum(tf.reduce_sum(share), 1.0) * float(math.prod(x.shape[1:-1]))
        mean = _summed(x * share)
        apart = x - _spread(mean, x.shape)
        variance = _summed(apart * apart * share)
        self._move_statistics(layer, mean, variance)
        scale = tf.math.rsqrt(variance + layer.epsilon)
        if layer.scale:
            scale *= layer.gamma.value
        y = apart * _spread(scale, x.shape)
        return y + _spread(layer.beta.value, x.shape) if layer.center else y

    def _move_statistics(self, layer: Any, mean: Tensor, variance: Tensor) -> None:
        kept = layer.momentum
        for moving, moment in ((layer.moving_mean.value, mean), (layer.moving_variance.value, variance)):
            moving.assign(moving * kept + tf.stop_gradient(moment) * (1.0 - kept))

    def _clipped(self, gradients: list[Tensor], most: Tensor) -> list[Tensor]:
        """By the norm of all tensors together (Pascanu et al. 2013, arXiv:1211.5063)."""
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(g)) for g in gradients]))
        scale = most / tf.maximum(norm, most)
        return [g * scale for g in gradients]

    def _decay(self, share: Tensor) -> None:
        """Of kernels: biases and the gains of normalization keep theirs."""
        for v in self._trained:
            if len(v.shape) > 1:
                v.assign(v * (1.0 - share))

    def _adam(self, gradients: list[Tensor], lr: Tensor) -> None:
        step = self._steps.assign_add([1.0])
        rate = lr * tf.sqrt(1.0 - tf.pow(self.beta_2, step)) / (1.0 - tf.pow(self.beta_1, step))
        # The slots hold the moments over (1 - beta): two operations less on tensors as large as the weights,
        # and such operations, not the products, are most of a dense head's step.
        rate *= (1.0 - self.beta_1) / (1.0 - self.beta_2) ** 0.5
        epsilon = self.epsilon / (1.0 - self.beta_2) ** 0.5
        for v, g, first, second in zip(self._trained, gradients, *self._slots, strict=True):
            m = first * self.beta_1 + g
            s = second * self.beta_2 + g * g
            first.assign(m)
            second.assign(s)
            v.assign(v - m * rate / (tf.sqrt(s) + epsilon))

    def _sgd(self, gradients: list[Tensor], lr: Tensor) -> None:
        if not self._slots:
            for v, g in zip(self._trained, gradients, strict=True):
                v.assign(v - lr * g)
            return
        for v, g, velocity in zip(self._trained, gradients, self._slots[0], strict=True):
            moved = self._momentum * velocity - lr * g
            velocity.assign(moved)
            v.assign(v + moved)

    def _infer(self, x: Tensor) -> dict[str, Tensor]:
        return {"prob": self._model(x, training=False)[1]}

    def _get(self) -> dict[str, Tensor]:
        return {k: v.read_value() for k, v in zip(self.arguments, self._all, strict=True)}

    def _set(self, *values: Tensor) -> dict[str, Tensor]:
        for v, value in zip(self._all, values, strict=True):
            v.assign(value)
        trained = [
            value for v, value in zip(self._all, values, strict=True) if any(v is t for t in self._trained)
        ]
        for a, value in zip(self._anchor, trained, strict=True):
            a.assign(value)
        for slot in self._slots:
            for s in slot:
                s.assign(tf.zeros(s.shape))
        self._steps.assign([0.0])
        # A signature must give something back.
        return {"ok": tf.reshape(values[0], [-1])[:1]}


def _summed(x: Tensor) -> Tensor:
    """The sum over all axes but the last, one axis at a time.

    Light runtimes add one number after the other: 74 thousand at once lost three digits of a VGG's gradient.
    """
    for axis in range(len(x.shape) - 2, -1, -1):
        x = tf.reduce_sum(x, axis)
    return x


def _spread(channels: Tensor, shape: Any) -> Tensor:
    """Numbers of channels beside a tensor of that shape; their gradient is summed one axis at a time."""
    out = tf.reshape(channels, [1] * (len(shape) - 1) + [shape[-1]])
    for axis in range(len(shape) - 2):
        out += tf.zeros([*shape[: axis + 1], *([1] * (len(shape) - axis - 1))])
    return out
