"""The exact sum: plain cases here, every order and split in tests/property."""

from __future__ import annotations

import numpy as np
import pytest

from apiary.errors import ModelError
from apiary.tensors import Weights
from apiary.wire.messages import Bounds
from apiary_coordinator.updates.exact_sum import ExactSum, grid_bits

SHAPES = {"a": (2, 3), "b": (1,)}


def weights(value: float) -> Weights:
    return Weights({n: np.full(s, value, np.float32) for n, s in SHAPES.items()})


def test_the_mean_is_weighted_by_samples() -> None:
    total = ExactSum(SHAPES, grid_bits(Bounds(), 3))
    total.add(weights(1.0), 1)
    total.add(weights(4.0), 2)
    mean = total.mean()
    assert {n: (m.shape, m.dtype) for n, m in mean.items()} == {
        n: (s, np.dtype(np.float64)) for n, s in SHAPES.items()
    }
    assert all((m == 3.0).all() for m in mean.values())
    assert len(mean) == 2
    assert (total.samples, total.updates) == (3, 2)


def test_what_is_taken_out_was_never_there() -> None:
    """To the bit, whatever was rounded when it came."""
    rng = np.random.default_rng(3)
    updates = [
        (Weights({n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}), samples)
        for samples in (7, 1, 2**20)
    ]
    without, with_all = (ExactSum(SHAPES, grid_bits(Bounds(), 3)) for _ in range(2))
    for update, samples in updates:
        with_all.add(update, samples)
    for update, samples in updates[1:]:
        without.add(update, samples)
    before = {name: tensor.tobytes() for name, tensor in with_all.mean().items()}
    with_all.remove(*updates[0])
    assert (with_all.samples, with_all.updates) == (without.samples, without.updates)
    assert {n: t.tobytes() for n, t in with_all.mean().items()} == {
        n: t.tobytes() for n, t in without.mean().items()
    }
    with_all.add(*updates[0])
    assert {n: t.tobytes() for n, t in with_all.mean().items()} == before


def test_no_update_has_no_mean() -> None:
    with pytest.raises(ModelError, match="no update was added"):
        ExactSum(SHAPES, 30).mean()


def test_what_was_not_screened_is_refused_and_changes_nothing() -> None:
    total = ExactSum(SHAPES, 30)
    with pytest.raises(ModelError, match="an update that was not screened: tensor 'b' is missing"):
        total.add(Weights({"a": np.zeros((2, 3), np.float32)}), 1)
    assert (total.samples, total.updates) == (0, 0)


def test_tensors_larger_than_a_block_and_scalars() -> None:
    shapes = {"big": (70_001,), "scalar": ()}
    rng = np.random.default_rng(0)
    big = rng.normal(size=70_001).astype(np.float32)
    total = ExactSum(shapes, grid_bits(Bounds(), 1))
    total.add(Weights({"big": big, "scalar": np.float32(2.5).reshape(())}), 7)
    mean = total.mean()
    assert np.abs(mean["big"] - big).max() <= 2.0**-total.bits
    assert mean["scalar"] == 2.5


@pytest.mark.parametrize("max_updates", [0, 1, 2, 3, 1000, 20_000])
@pytest.mark.parametrize(("max_abs", "max_samples"), [(64.0, 2**17), (1e6, 2**24), (0.001, 1), (3.0, 5)])
def test_the_grid_is_as_fine_as_the_bounds_allow(max_abs: float, max_samples: int, max_updates: int) -> None:
    bits = grid_bits(Bounds(max_abs=max_abs, max_samples=max_samples), max_updates)
    largest = max_abs * max_samples * max(1, max_updates)
    assert largest * 2.0**bits <= 2**52 < largest * 2.0 ** (bits + 1)
