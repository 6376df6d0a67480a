"""The mean of each coordinate without its extremes, each update once (Yin et al. 2018, arXiv:1803.01498)."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from apiary.options import StageOptions
from apiary.tensors import Array
from apiary_coordinator.combiners.base import ROBUST_LEAST, Combined, Updates, by_coordinate, ordered


class Options(StageOptions):
    """How much is cut off."""

    trim: float = Field(
        0.2, gt=0, lt=0.5, description="share of the updates cut off at each end, at least one"
    )


def least(options: Options) -> int:
    """Three: one is cut off at each end."""
    return ROBUST_LEAST


def combine(updates: Updates, options: Options) -> Combined:
    """The lowest and the highest share `trim` of each coordinate are not in its mean."""
    n = len(updates.nodes)
    cut = min(max(1, int(options.trim * n + 1e-9)), (n - 1) // 2)

    def trimmed(block: Array) -> NDArray[np.float64]:
        middle = ordered(block)[:, cut : n - cut].astype(np.float64)
        result: NDArray[np.float64] = middle.mean(axis=1)
        return result

    return Combined(by_coordinate(updates, trimmed))
