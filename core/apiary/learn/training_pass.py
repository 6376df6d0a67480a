"""A Keras model as it is in training: dropout by given noise, BatchNormalization by the samples that count.

Both follow from a step's arguments alone: every runtime takes the same step, and filler changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from apiary.errors import ModelError

Tensor = Any
Drop = Callable[[Tensor, Tensor, float], Tensor]
"""`drop(x, noise, rate)`: `noise` has the shape of `x`, uniform in [0, 1)."""
Normalize = Callable[[Any, Tensor, Tensor], Tensor]
"""`normalize(layer, x, counts)`: by the moments of the samples that count, bool[B]; the statistics move."""


class TrainingPass:
    """The outputs of a Keras model in training.

    Dropout (Srivastava et al. 2014, JMLR 15) keeps what lies over noise of at least its rate.
    BatchNormalization (Ioffe and Szegedy 2015, arXiv:1502.03167) takes the moments of the samples of a weight
    above 0 and moves its statistics, where these are among the tensors `moving`; others are used as they are.
    """

    def __init__(
        self,
        model: Any,
        *,
        moving: Collection[str],
        drop: Drop | None = None,
        normalize: Normalize | None = None,
    ):
        self._counts: Tensor = None
        self._noise: Tensor = None
        self._moving = frozenset(moving)
        self._drop, self._normalize = drop or _drop, normalize or _normalize
        self._at = 0
        self._model = self._cloned(model)

    @property
    def noise(self) -> int:
        """Uniform numbers that dropout takes for a sample."""
        return self._at

    def __call__(self, x: Tensor, w: Tensor, noise: Tensor = None) -> Any:
        """The outputs for `x` [B, ...] of weights `w` [B]; `noise` [B, n] where there is dropout."""
        self._counts, self._noise = w > 0, noise
        try:
            return self._model(x, training=True)
        finally:
            self._counts = self._noise = None

    def _cloned(self, model: Any) -> Any:
        """The model with these layers replaced, its others shared; the model itself where it has none."""
        import keras

        special = (keras.layers.Dropout, keras.layers.BatchNormalization)
        if not any(isinstance(layer, special) for layer in model.layers):
            return model
        return keras.models.clone_model(model, clone_function=self._replaced)

    def _replaced(self, layer: Any) -> Any:
        import keras

        if isinstance(layer, keras.layers.Dropout):
            return self._dropping(layer)
        if isinstance(layer, keras.layers.BatchNormalization):
            return self._normalizing(layer)
        return layer

    def _dropping(self, layer: Any) -> Any:
        if layer.noise_shape is not None:
            raise ModelError(f"{layer.name}: dropout of whole maps or rows (noise_shape) is not trained")
        shape = tuple(layer.input.shape[1:])
        start, self._at = self._at, self._at + math.prod(shape)
        rate = float(np.float32(layer.rate))  # compared with float32, in whatever precision the layer is

        def call(x: Tensor) -> Tensor:
            if self._noise is None:  # the layer's shapes are looked at
                return x
            import keras

            noise = self._noise[:, start : start + math.prod(shape)]
            return self._drop(x, keras.ops.reshape(noise, (-1, *shape)), rate)

        return _layer(layer, call)

    def _normalizing(self, layer: Any) -> Any:
        moves = f"{layer.name}/moving_mean" in self._moving

        def call(x: Tensor) -> Tensor:
            if self._counts is None:
                return x
            return self._normalize(layer, x, self._counts) if moves else layer(x, training=False)

        return _layer(layer, call)


def _layer(like: Any, call: Callable[[Tensor], Tensor]) -> Any:
    import keras

    # Named as the layer; in its precision, which Keras would otherwise cast to float32.
    return keras.layers.Lambda(call, name=like.name, dtype=like.dtype_policy)


def _drop(x: Tensor, noise: Tensor, rate: float) -> Tensor:
    import keras

    kept = keras.ops.cast(noise >= rate, x.dtype)
    return x * (kept / (1 - rate))


def _normalize(layer: Any, x: Tensor, counts: Tensor) -> Tensor:
    """By Keras' own masked moments."""
    import keras

    places = keras.ops.reshape(counts, (-1, *(1 for _ in x.shape[1:-1])))
    # `call` itself: the mask is of this layer alone, and does not travel on with what it gives.
    return layer.call(x, training=True, mask=keras.ops.broadcast_to(places, x.shape[:-1]))
