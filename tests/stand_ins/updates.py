"""A round's updates for combiners: in memory, or in a spool as the coordinator has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiary.tensors import Array, Shapes, Tensors64, Weights
from apiary.wire import NodeId, blob
from apiary.wire.messages import Bounds
from apiary_coordinator.combiners.base import block_width
from apiary_coordinator.updates.counted import CountedUpdates
from apiary_coordinator.updates.exact_sum import ExactSum, grid_bits
from apiary_coordinator.updates.spool import Spool

BOUNDS = Bounds(max_abs=64.0, max_samples=1000)
SHAPES: Shapes = {"conv/kernel": (3, 3, 1, 2), "conv/bias": (2,), "scale": (), "classes/kernel": (5, 4)}


def flat(tensors: Mapping[str, Array] | Tensors64) -> NDArray[Any]:
    """All numbers in order."""
    return np.concatenate([np.asarray(t).reshape(-1) for t in tensors.values()])


def drawn(seed: int, count: int, *, shapes: Shapes = SHAPES, scale: float = 0.1) -> dict[NodeId, Weights]:
    """So many updates around one direction, as nodes that learn the same have them."""
    rng = np.random.default_rng(seed)
    common = {n: rng.normal(scale=scale, size=s) for n, s in shapes.items()}
    return {
        NodeId(f"pi-{i:03d}"): Weights(
            {n: (c + rng.normal(scale=scale, size=c.shape)).astype(np.float32) for n, c in common.items()}
        )
        for i in range(count)
    }


def weighed(nodes: Iterable[NodeId], seed: int = 0) -> dict[NodeId, int]:
    """What each node's update weighs, 1 to 1000."""
    rng = np.random.default_rng(seed)
    return {node: int(rng.integers(1, 1001)) for node in sorted(nodes)}


class UpdatesInMemory:
    """`combiners.base.Updates` of arrays."""

    def __init__(self, updates: Mapping[NodeId, Weights], samples: Mapping[NodeId, int] | None = None):
        self._updates = updates
        self.nodes = sorted(updates)
        self.samples = [1 if samples is None else samples[node] for node in self.nodes]
        self.shapes = next(iter(updates.values())).shapes

    def mean(self) -> Tensors64:
        total = ExactSum(self.shapes, grid_bits(BOUNDS, len(self.nodes)))
        for node, samples in zip(self.nodes, self.samples, strict=True):
            total.add(self._updates[node], samples)
        return total.mean()

    def blocks(self) -> Iterator[Array]:
        rows = np.stack([flat(self._updates[node]) for node in self.nodes])
        width = block_width(len(rows))
        for start in range(0, rows.shape[1], width):
            yield rows[:, start : start + width]


@contextmanager
def spooled(
    path: Path,
    updates: Mapping[NodeId, Weights],
    samples: Mapping[NodeId, int],
    *,
    codec: str = "raw_f32",
    summed: bool,
    order: Iterable[NodeId] | None = None,
) -> Iterator[CountedUpdates]:
    """The updates as they lie in a spool, counted in this order."""
    shapes = next(iter(updates.values())).shapes
    spool = Spool(path, blob.most_bytes(shapes, codec), sync=False)
    counted = CountedUpdates(spool, shapes, grid_bits(BOUNDS, len(updates)), summed=summed)
    for node in order or updates:
        document = blob.encode(updates[node], codec_name=codec, about={"node": node})
        slot = spool.allocate(len(updates))
        spool.write(slot, 0, document)
        counted.add(node, slot, len(document), samples[node])
    try:
        yield counted
    finally:
        spool.close()
        spool.remove()
