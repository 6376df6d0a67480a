"""The median of each coordinate, each update once (Yin et al. 2018, arXiv:1803.01498)."""

import numpy as np
from numpy.typing import NDArray

from apiary.options import StageOptions
from apiary.tensors import Array
from apiary_coordinator.combiners.base import ROBUST_LEAST, Combined, Updates, by_coordinate, ordered


class Options(StageOptions):
    """None."""


def least(options: Options) -> int:
    """Three, of which one may be false."""
    return ROBUST_LEAST


def combine(updates: Updates, options: Options) -> Combined:
    """Of an even number of updates the mean of the two in the middle."""
    return Combined(by_coordinate(updates, _median))


def _median(block: Array) -> NDArray[np.float64]:
    n = block.shape[0]
    middle = ordered(block)[:, [(n - 1) // 2, n // 2]].astype(np.float64)
    result: NDArray[np.float64] = (middle[:, 0] + middle[:, 1]) / 2
    return result
