"""The point nearest to all updates together, by Weiszfeld steps (Pillutla et al. 2019, arXiv:1912.13445).

Weighted by samples, as in the paper: the weights are capped so that none has half, and an update far away
counts for less the farther it is.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from apiary.options import StageOptions
from apiary_coordinator.combiners.base import ROBUST_LEAST, Combined, Updates, by_coordinate, weighted

_SMOOTHING: Final = 1e-6
"""Least distance, in those of the plain mean to its farthest update: none divides by 0."""


class Options(StageOptions):
    """How near the point is sought."""

    steps: int = Field(8, ge=1, le=100, description="steps towards the point; each reads all updates once")


def least(options: Options) -> int:
    """Three: of two every point between them is one."""
    return ROBUST_LEAST


def combine(updates: Updates, options: Options) -> Combined:
    """Each step weighs every update by its samples over its distance to the last point."""
    samples = np.asarray(updates.samples, np.float64)
    shares = samples / samples.sum()
    floor = 0.0
    for _ in range(options.steps):
        distances = _distances(updates, shares)
        floor = floor or _SMOOTHING * float(distances.max())
        if floor == 0:
            break  # they are all the same
        pulls = samples / np.maximum(distances, floor)
        shares = pulls / pulls.sum()
    return Combined(by_coordinate(updates, lambda block: weighted(block, shares)))


def _distances(updates: Updates, shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each update to the point that has these shares of them."""
    squares = np.zeros(len(shares))
    for block in updates.blocks():
        apart = block - weighted(block, shares)
        squares += np.square(apart, out=apart).sum(axis=1)
    return np.sqrt(squares)
