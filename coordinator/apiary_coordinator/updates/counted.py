"""The accepted updates of one round, for the combiner: in the spool, and for the mean in the exact sum.

Memory holds 8 bytes a weight for the sum, or a block of coordinates of all updates, however many there are;
and some hundred bytes of each update, where it lies and what it weighs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from apiary.errors import ModelError
from apiary.tensors import Array, Shapes, Tensors64
from apiary.wire import NodeId, blob
from apiary_coordinator.combiners.base import block_width
from apiary_coordinator.updates.exact_sum import ExactSum
from apiary_coordinator.updates.spool import Spool


@dataclass(frozen=True, slots=True)
class Counted:
    """An update that counts: where it lies in the spool, what it weighs, and its norm."""

    slot: int
    bytes: int
    samples: int
    norm: float
    numbers: blob.Numbers | None
    """None where they are summed: nobody reads it in parts."""


class CountedUpdates:
    """Called by the worker alone. Are `combiners.base.Updates`, by node id whatever order they came in."""

    def __init__(self, spool: Spool, shapes: Shapes, bits: int, *, summed: bool):
        """`bits` is the grid of the exact sum, which is kept where they are `summed`."""
        self._spool = spool
        self._sum = ExactSum(shapes, bits) if summed else None
        self._summed = summed
        self._like: blob.Numbers | None = None
        self._gone: frozenset[NodeId] = frozenset()
        self.shapes = shapes
        self.by_node: dict[NodeId, Counted] = {}
        """Of all, also while some are taken out."""

    def add(self, node: NodeId, slot: int, size: int, samples: int) -> None:
        """Count one update that was screened. Raises StoreError."""
        with self._spool.view(slot, size) as view:
            update = blob.decode(view, who=f"node {node}").weights
            if self._sum is not None:
                self._sum.add(update, samples)
            else:
                self._like = blob.Numbers(view, who=f"node {node}", like=self._like)
            self.by_node[node] = Counted(slot, size, samples, update.norm(), self._like)
            del update  # it looks into the view

    def drop_sum(self) -> None:
        """Free the sum: the round is over."""
        self._sum = None

    @contextmanager
    def without(self, nodes: frozenset[NodeId]) -> Iterator[None]:
        """Within the block these are not among the updates; afterwards all is to the bit what it was."""
        before, taken = self._gone, list[NodeId]()
        try:
            for node in nodes - before:
                self._change(node, -1)
                taken.append(node)
            self._gone = before | nodes
            yield
        finally:
            self._gone = before
            for node in taken:
                self._change(node, 1)

    @property
    def nodes(self) -> Sequence[NodeId]:
        """Whose updates they are, sorted."""
        return sorted(self.by_node.keys() - self._gone)

    @property
    def samples(self) -> Sequence[int]:
        """What each of `nodes` weighs."""
        return [self.by_node[node].samples for node in self.nodes]

    def mean(self) -> Tensors64:
        """The exact mean. Raises ModelError where they are not summed."""
        if self._sum is None:
            raise ModelError("these updates are not summed: their combiner does not say STREAMS")
        return self._sum.mean()

    def blocks(self) -> Iterator[Array]:
        """Blocks of coordinates float32[n, width] of all updates; the next overwrites the last.

        Raises StoreError, and ModelError where they are summed.
        """
        if self._summed:
            raise ModelError(
                "these updates are summed: their combiner says STREAMS, and may ask for the mean"
            )
        updates = [
            (one.numbers, partial(self._spool.read, one.slot))
            for one in map(self.by_node.__getitem__, self.nodes)
            if one.numbers is not None
        ]
        count = sum(int(np.prod(shape)) for shape in self.shapes.values())
        width = min(block_width(len(updates)), count)
        block = np.empty((len(updates), width), np.float32)
        for start in range(0, count, width):
            part = block[:, : min(width, count - start)]
            for row, (numbers, read) in zip(part, updates, strict=True):
                numbers.part(read, start, row)
            yield part

    def _change(self, node: NodeId, sign: int) -> None:
        if self._sum is None:
            return
        one = self.by_node[node]
        with self._spool.view(one.slot, one.bytes) as view:
            update = blob.decode(view, who=f"node {node}").weights
            if sign > 0:
                self._sum.add(update, one.samples)
            else:
                self._sum.remove(update, one.samples)
            del update
