from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.partition import KINDS, count, hold_out, partition

labels = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda v: np.array(v, dtype=np.int64))


@given(
    y=labels,
    nodes=st.integers(1, 12),
    by=st.sampled_from(KINDS),
    alpha=st.floats(1e-6, 1e4),
    sigma=st.floats(1e-3, 20),
    shards=st.integers(1, 4),
    least=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=300)
def test_every_sample_is_on_exactly_one_node_and_no_node_is_short(
    *, y: NDArray[Any], nodes: int, by: str, alpha: float, sigma: float, shards: int, least: int, seed: int
) -> None:
    enough = y.size >= nodes * least
    if by == "shards":
        enough = enough and y.size >= nodes * shards and y.size // (nodes * shards) * shards >= least
    try:
        parts = partition(
            y, nodes, by=by, alpha=alpha, sigma=sigma, shards=shards, seed=seed, min_samples=least
        )
    except DataError:
        assert not enough
        return
    assert enough
    assert len(parts) == nodes
    assert sorted(np.concatenate(parts).tolist()) == list(range(y.size))
    assert min(p.size for p in parts) >= least
    assert count(y, parts, 7).sum(axis=0).tolist() == np.bincount(y, minlength=7).tolist()


@given(labels, st.floats(0.01, 0.99), st.integers(0, 2**31 - 1))
def test_hold_out_is_a_partition_in_two(y: NDArray[Any], share: float, seed: int) -> None:
    train, test = hold_out(y, share, seed=seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(y.size))
