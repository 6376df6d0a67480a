"""The mean of the updates that are nearest to others, each once (Blanchard et al. 2017, arXiv:1703.02757).

What lies apart is dropped, whether it is false or a rare honest one. Distances are exact: the numbers are
rounded to a grid on which sums of products are whole numbers below 2**53, so that neither the order of
additions nor the machine decides who is dropped.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from apiary.options import StageOptions
from apiary_coordinator.combiners.base import Combined, Updates, block_width, by_coordinate, weighted

_EXACT_BITS: Final = 52
_NEEDED: Final = 3
"""n >= 2 f + 3, in the paper."""


class Options(StageOptions):
    """How many are dropped."""

    byzantine: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="share of the updates that may be false, at least one: so many are dropped",
    )


def least(options: Options) -> int:
    """The fewest from which on there are always three more than twice those that are dropped."""
    most = math.ceil(_NEEDED / (1 - 2 * options.byzantine)) + _NEEDED
    return max((n for n in range(1, most) if n < 2 * _false(n, options) + _NEEDED), default=0) + 1


def combine(updates: Updates, options: Options) -> Combined:
    """A score is the sum of squared distances to the n - f - 2 nearest; the f highest are dropped."""
    n = len(updates.nodes)
    false = max(0, min(_false(n, options), (n - _NEEDED) // 2))
    near = max(1, n - false - 2)
    scores = _scores(updates, near) if n > 1 else np.zeros(n)
    # Of equal scores the first by node id are taken.
    taken = np.argsort(scores, kind="stable")[: n - false]
    shares = np.zeros(n)
    shares[taken] = 1 / len(taken)
    distances = np.sqrt(scores)
    typical = float(np.sort(distances)[(n - 1) // 2])
    dropped = {
        updates.nodes[
            i
        ]: f"its distance to the {near} nearest updates is {distances[i]:.4g}, the median's is "
        f"{typical:.4g} (run.combiner multi_krum drops {false} of {n})"
        for i in sorted({*range(n)} - {*taken.tolist()})
    }
    return Combined(by_coordinate(updates, lambda block: weighted(block, shares)), dropped)


def _false(n: int, options: Options) -> int:
    return max(1, int(options.byzantine * n + 1e-9))


def _scores(updates: Updates, near: int) -> NDArray[np.float64]:
    """Sum of squared distances of each update to its nearest others, some updates at a time."""
    n = len(updates.nodes)
    most = _largest(updates)
    scores = np.empty(n)
    rows = block_width(n)
    for first in range(0, n, rows):
        some = range(first, min(n, first + rows))
        squares = _squares(updates, some, most)
        squares[np.arange(len(some)), some] = np.inf
        squares.partition(near - 1, axis=1)
        nearest = np.sort(squares[:, :near], axis=1)
        scores[some.start : some.stop] = nearest.sum(axis=1)
    return scores


def _squares(updates: Updates, some: range, most: float) -> NDArray[np.float64]:
    """Squared distances float64[len(some), n] of some updates to all, in steps of a grid."""
    n = len(updates.nodes)
    total = np.zeros((len(some), n))
    for block in updates.blocks():
        # Each of the three sums below is at most width * 4**bits, and their total four times that.
        bits = (_EXACT_BITS - 2 - math.ceil(math.log2(block.shape[1]))) // 2
        scale = bits - math.frexp(most)[1]
        steps = np.rint(np.ldexp(block.astype(np.float64), scale))
        own = np.einsum("ij,ij->i", steps, steps)
        products = steps[some.start : some.stop] @ steps.T
        total += np.ldexp(own[some.start : some.stop, None] + own[None, :] - 2 * products, -2 * scale)
    return total


def _largest(updates: Updates) -> float:
    return max(float(np.max(np.abs(block))) for block in updates.blocks()) or 1.0
