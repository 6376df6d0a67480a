"""What a combiner is: a function of a round's accepted updates, without I/O and chance.

`mean` takes each update as it comes, in the exact sum. The others need all of them at once: they go through
the coordinates in blocks, each of all updates, so that memory does not grow with the number of nodes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from apiary.options import StageOptions
from apiary.tensors import Array, Shapes, Tensors64
from apiary.wire import NodeId

BLOCK_NUMBERS: Final = 1 << 21
"""Of all updates together in one block: 8 MiB of float32, and up to three times 16 of float64 beside them."""
ROBUST_LEAST: Final = 3
"""Of two updates none can be told to be false: their median is their mean."""


class Updates(Protocol):
    """The accepted updates of a round, or those that are left of them."""

    @property
    def nodes(self) -> Sequence[NodeId]:
        """Whose they are, sorted; in the order of a block's rows."""

    @property
    def samples(self) -> Sequence[int]:
        """What each weighs: a node's claim, up to the round's cap."""

    @property
    def shapes(self) -> Shapes:
        """Of each update."""

    def mean(self) -> Tensors64:
        """The exact weighted mean; to be used up before the updates change."""

    def blocks(self) -> Iterator[Array]:
        """All coordinates in order, some at a time: float32[n, width], which the next one overwrites.

        The widths follow from the number of updates and the shapes alone. Raises StoreError.
        """


@dataclass(frozen=True, slots=True)
class Combined:
    """One update out of all, relative to what they are, and why which ones are not in it at all."""

    update: Tensors64
    dropped: Mapping[NodeId, str] = field(default_factory=dict)


class Combiner(Protocol):
    """A plug-in module of `apiary_coordinator.combiners` has these.

    It may also have `STREAMS = True`: `combine` asks for nothing but `mean()`, and the updates are added up
    as they come.
    """

    Options: type[StageOptions]

    def least(self, options: Any) -> int:
        """The fewest updates, at least 1, with which it does what its name says, and with any more."""

    def combine(self, updates: Updates, options: Any) -> Combined:
        """The same bits for the same updates, whatever order they came in; also of one update."""


def block_width(updates: int) -> int:
    """How many coordinates of so many updates a block has."""
    return max(1, BLOCK_NUMBERS // max(1, updates))


def by_coordinate(updates: Updates, combine: Callable[[Array], NDArray[np.float64]]) -> Tensors64:
    """One number for each coordinate: `combine` gives float64[width] for a block float32[n, width]."""
    flat = np.empty(sum(math.prod(shape) for shape in updates.shapes.values()))
    at = 0
    for block in updates.blocks():
        width = block.shape[1]
        flat[at : at + width] = combine(block)
        at += width
    return _split(flat, updates.shapes)


def ordered(block: Array) -> Array:
    """A block's coordinates, each with its numbers in rising order: float32[width, n]."""
    turned = np.ascontiguousarray(block.T)
    turned.sort(axis=1)
    return turned


def weighted(block: Array, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of a block's rows times their weights: float64[width]."""
    total: NDArray[np.float64] = np.add.reduce(block * weights[:, None], axis=0)
    return total


def _split(flat: NDArray[np.float64], shapes: Shapes) -> Tensors64:
    tensors: dict[str, NDArray[np.float64]] = {}
    at = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        tensors[name] = flat[at : at + size].reshape(shape)
        at += size
    return tensors
