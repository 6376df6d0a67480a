"""Model weights as an ordered, read-only mapping of names to float32 arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import ModelError

Array = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]
Tensors64 = Mapping[str, NDArray[np.float64]]
"""Tensors by name while they are computed with; what is kept or sent of them is rounded to `Weights`."""
_BLOCK: Final = 1 << 16


class Weights(Mapping[str, Array]):
    """Tensors by name, in the model's order. Arrays are C-contiguous float32 and must not be written to."""

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, NDArray[np.generic]]):
        self._tensors = {
            name: np.ascontiguousarray(t, dtype=np.float32).reshape(t.shape) for name, t in tensors.items()
        }

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors, {self.count} numbers)"

    @property
    def shapes(self) -> Shapes:
        """Shape of every tensor, in order."""
        return {name: t.shape for name, t in self._tensors.items()}

    @property
    def count(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(t.size for t in self._tensors.values())

    def __add__(self, other: Weights) -> Weights:
        return self._zip(other, lambda a, b: a + b)

    def __sub__(self, other: Weights) -> Weights:
        return self._zip(other, lambda a, b: a - b)

    def max_abs(self) -> float:
        """Largest magnitude; infinite or NaN numbers come through as such."""
        return max((float(np.max(np.abs(t))) for t in self._tensors.values() if t.size), default=0.0)

    def norm(self) -> float:
        """Euclidean norm over all tensors together, summed in float64."""
        return math.sqrt(sum(map(square_sum, self._tensors.values())))

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(np.isfinite(t).all()) for t in self._tensors.values())

    def zeros(self) -> Weights:
        """Zeros of the same names and shapes."""
        return Weights({name: np.zeros_like(t) for name, t in self._tensors.items()})

    def _zip(self, other: Weights, op: Callable[[Array, Array], Array]) -> Weights:
        if why := differs(other.shapes, self.shapes):
            raise ModelError(f"these weights do not fit together: {why}")
        return Weights({name: op(t, other[name]) for name, t in self._tensors.items()})


def square_sum(tensor: Array) -> float:
    """The sum of all squares, in float64 and a block at a time: no copy of the whole is made."""
    flat, total = tensor.reshape(-1), 0.0
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK].astype(np.float64)
        total += float(np.dot(part, part))
    return total


def differs(got: Shapes, expected: Shapes) -> str | None:
    """The first difference between two sets of shapes as a sentence, or None where there is none."""
    for name, shape in expected.items():
        if name not in got:
            return f"tensor {name!r} is missing"
        if tuple(got[name]) != tuple(shape):
            return f"tensor {name!r} has shape {list(got[name])}, expected {list(shape)}"
    for name in got:
        if name not in expected:
            return f"tensor {name!r} is not part of the model"
    if list(got) != list(expected):
        return f"tensors come in another order: {list(got)[:3]}..., expected {list(expected)[:3]}..."
    return None
