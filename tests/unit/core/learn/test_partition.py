from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.partition import count, hold_out, partition, table

LABELS = np.repeat(np.arange(10), 100)


def spread(parts: list[NDArray[Any]]) -> float:
    """Mean distance of the nodes' class mixtures from the whole's: 0 is IID."""
    shares = count(LABELS, parts, 10) / np.array([[p.size] for p in parts])
    return float(np.abs(shares - 0.1).sum(axis=1).mean())


def test_iid_gives_even_sizes_and_near_even_mixtures() -> None:
    parts = partition(LABELS, 7, by="iid", seed=3)
    assert {p.size for p in parts} == {142, 143}
    assert spread(parts) < 0.4


def test_shards_leave_at_most_k_labels_and_neighbours() -> None:
    # 1000 samples in 20 shards of 50: every shard lies within one label of 100.
    parts = partition(LABELS, 10, by="shards", shards=2, seed=1)
    held = count(LABELS, parts, 10)
    assert (np.count_nonzero(held, axis=1) <= 2).all()
    assert (held.sum(axis=1) == 100).all()


def test_smaller_alpha_is_less_alike() -> None:
    unlike = [spread(partition(LABELS, 5, by="dirichlet", alpha=a, seed=5)) for a in (0.1, 1.0, 1000.0)]
    assert unlike[0] > unlike[1] + 0.2 > unlike[2] + 0.4
    assert unlike[2] < 0.3


def test_dirichlet_has_equal_sizes_even_where_gamma_underflows() -> None:
    parts = partition(LABELS, 4, by="dirichlet", alpha=1e-6, seed=0)
    assert [p.size for p in parts] == [250] * 4
    assert sorted(np.concatenate(parts)) == list(range(1000))


def test_quantity_varies_sizes_and_keeps_the_minimum() -> None:
    sizes = sorted(p.size for p in partition(LABELS, 8, by="quantity", sigma=2.0, seed=2, min_samples=9))
    assert sizes[0] >= 9
    assert sizes[-1] > 5 * sizes[0]


def test_seed_decides() -> None:
    a, b, c = (partition(LABELS, 3, by="dirichlet", seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 1001}, r"1000 samples cannot give 1001 nodes at least 1 each: take fewer"),
        ({"nodes": 0}, r"nodes: 0, expected 1 or more"),
        ({"nodes": 2, "seed": -1}, r"seed: -1, expected 0 or more"),
        ({"nodes": 2, "by": "random"}, r"no partition 'random'. There are: iid, shards, dirichlet, quantity"),
        ({"nodes": 2, "by": "dirichlet", "alpha": 0.0}, r"alpha is 0.0, expected a number above 0"),
        ({"nodes": 2, "by": "dirichlet", "alpha": float("nan")}, r"alpha is nan"),
        ({"nodes": 2, "by": "quantity", "sigma": -1.0}, r"sigma is -1.0"),
        ({"nodes": 2, "by": "shards", "shards": 0}, r"0 shards"),
        ({"nodes": 300, "by": "shards", "shards": 4}, r"in 1200 shards"),
        ({"nodes": 3, "by": "shards", "shards": 300, "min_samples": 301}, r"leave nodes with 300"),
    ],
)
def test_impossible_wishes_say_why(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        partition(LABELS, **options)  # type: ignore[arg-type]  # wrong values are the point


def test_labels_must_be_integers() -> None:
    with pytest.raises(DataError, match=r"labels are float64\[3\], expected one row of integers"):
        partition(np.array([0.0, 1.0, 2.0]), 2)


def test_hold_out_takes_its_share_of_every_class() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    train, test = hold_out(labels, 0.2, seed=4)
    assert np.bincount(labels[test], minlength=4).tolist() == [10, 2, 1, 0]
    assert sorted([*train, *test]) == list(range(labels.size))


def test_hold_out_refuses_a_share_of_one() -> None:
    with pytest.raises(DataError, match=r"test share is 1.0"):
        hold_out(LABELS, 1.0)


def test_hold_out_refuses_a_negative_seed() -> None:
    with pytest.raises(DataError, match=r"seed is -1, expected 0 or more"):
        hold_out(LABELS, 0.2, seed=-1)


def test_table_has_a_row_a_node_and_bars_by_size() -> None:
    lines = table(np.array([[4, 0], [1, 1]]), ["node-1", "node-2"], ["head", "hardhat"]).split("\n")
    assert lines[0].split() == ["head", "hardhat", "total"]
    assert lines[1].split()[:4] == ["node-1", "4", "·", "4"]
    assert lines[1].count("█") == 2 * lines[2].count("█") == 24


def test_table_of_many_classes_names_the_largest() -> None:
    counts = np.zeros((1, 20), dtype=np.int64)
    counts[0, [3, 7]] = 5, 9
    assert "2 held: c7 9, c3 5" in table(counts, ["node-1"], [f"c{i}" for i in range(20)])
