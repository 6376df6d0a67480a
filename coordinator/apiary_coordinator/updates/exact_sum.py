"""The exact weighted sum: the same bits in any order, in any batches, after any resumption.

Each term `n * x` (a whole number of samples times a float32) is rounded once to a multiple of `2**-s` and
held as a whole number of such steps in float64. The round's declared bounds choose `s` so that no partial
sum passes 2**52: every addition is then exact, and exact additions commute.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import ModelError
from apiary.tensors import Shapes, Weights, differs
from apiary.wire.messages import Bounds

_EXACT_BITS: Final = 52
_BLOCK: Final = 1 << 15
"""Numbers taken at once: 256 KiB of float64, which stays in a core's second-level cache."""


def grid_bits(bounds: Bounds, max_updates: int) -> int:
    """The `s` of the grid: as fine as `max_updates` updates within `bounds` allow."""
    largest = bounds.max_abs * bounds.max_samples * max(1, max_updates)
    return _EXACT_BITS - math.ceil(math.log2(largest))


class ExactSum:
    """The running sum of one round. Holds 8 bytes a weight, however many updates come."""

    def __init__(self, shapes: Shapes, bits: int):
        self._shapes = shapes
        self.bits = bits
        self._steps: NDArray[np.float64] = np.zeros(sum(math.prod(s) for s in shapes.values()))
        self.samples = 0
        self.updates = 0

    def add(self, update: Weights, samples: int) -> None:
        """Add `samples * update`, which must have been screened against the bounds that chose the grid."""
        self._add(update, samples)
        self.samples += samples
        self.updates += 1

    def remove(self, update: Weights, samples: int) -> None:
        """Take out what was added: the sum is what it would be without, to the bit."""
        self._add(update, -samples)
        self.samples -= samples
        self.updates -= 1

    def _add(self, update: Weights, samples: int) -> None:
        if why := differs(update.shapes, self._shapes):
            raise ModelError(f"an update that was not screened: {why}")
        factor = math.ldexp(float(samples), self.bits)
        term = np.empty(_BLOCK)
        at = 0
        for tensor in update.values():
            flat = tensor.reshape(-1)
            for start in range(0, flat.size, _BLOCK):
                part = flat[start : start + _BLOCK]
                # n * x has at most 24 + 24 bits and a power of two scales exactly: only rint rounds.
                steps = np.multiply(part, factor, out=term[: part.size], dtype=np.float64)
                np.rint(steps, out=steps)
                self._steps[at : at + part.size] += steps
                at += part.size

    def mean(self) -> Mapping[str, NDArray[np.float64]]:
        """The weighted mean of all updates, float64 by tensor name. Raises ModelError where there is none.

        Each tensor is divided when it is read: no second copy of the sum is held.
        """
        if self.samples == 0:
            raise ModelError("no update was added, so there is no mean")
        return _Mean(self._shapes, self._steps, math.ldexp(float(self.samples), self.bits))


class _Mean(Mapping[str, NDArray[np.float64]]):
    """The mean as a mapping that divides on demand."""

    def __init__(self, shapes: Shapes, steps: NDArray[np.float64], divisor: float):
        self._shapes = shapes
        self._steps = steps
        self._divisor = divisor
        sizes = [math.prod(shape) for shape in shapes.values()]
        self._starts = dict(zip(shapes, accumulate(sizes, initial=0), strict=False))

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        start, shape = self._starts[name], self._shapes[name]
        mean: NDArray[np.float64] = self._steps[start : start + math.prod(shape)] / self._divisor
        return mean.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
