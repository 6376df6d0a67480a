"""Each combiner against its formula, written in plain numpy on all updates at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.stand_ins.updates import UpdatesInMemory, drawn, flat, weighed

from apiary.tensors import Weights
from apiary.wire import NodeId
from apiary_coordinator.combiners import geometric_median, median, multi_krum, trimmed_mean

COUNTS = [1, 2, 3, 4, 5, 8, 10, 11]


def rows(updates: dict[NodeId, Weights]) -> NDArray[Any]:
    stacked: NDArray[Any] = np.stack([flat(u) for u in updates.values()]).astype(np.float64)
    return stacked


def got(combiner: Any, updates: dict[NodeId, Weights], **options: Any) -> NDArray[Any]:
    return flat(combiner.combine(UpdatesInMemory(updates), combiner.Options(**options)).update)


@pytest.mark.parametrize("count", COUNTS)
def test_median(count: int) -> None:
    updates = drawn(count, count)
    assert np.array_equal(got(median, updates), np.median(rows(updates), axis=0))


@pytest.mark.parametrize(
    ("count", "trim", "cut"),
    [(3, 0.2, 1), (9, 0.2, 1), (10, 0.2, 2), (10, 0.3, 3), (10, 0.01, 1), (5, 0.49, 2)],
)
def test_trimmed_mean(count: int, trim: float, cut: int) -> None:
    updates = drawn(count, count)
    expected = np.sort(rows(updates), axis=0)[cut : count - cut].mean(axis=0)
    assert got(trimmed_mean, updates, trim=trim) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_of_one_or_two_the_trimmed_mean_cuts_nothing(count: int) -> None:
    updates = drawn(count, count)
    assert got(trimmed_mean, updates) == pytest.approx(rows(updates).mean(axis=0), rel=1e-12)


def geometric(points: NDArray[Any], weights: NDArray[Any], steps: int) -> NDArray[Any]:
    """Weiszfeld's steps from the weighted mean."""
    found: NDArray[Any] = np.average(points, axis=0, weights=weights)
    for _ in range(steps):
        found = np.average(points, axis=0, weights=weights / np.linalg.norm(points - found, axis=1))
    return found


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_geometric_median(steps: int) -> None:
    updates = drawn(1, 9)
    samples = weighed(updates)
    expected = geometric(rows(updates), np.array([*samples.values()], np.float64), steps)
    found = geometric_median.combine(UpdatesInMemory(updates, samples), geometric_median.Options(steps=steps))
    assert flat(found.update) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_geometric_median_is_where_the_distances_are_least() -> None:
    updates = drawn(2, 7)
    points, found = rows(updates), got(geometric_median, updates, steps=100)

    def distance(point: NDArray[Any]) -> float:
        return float(np.linalg.norm(points - point, axis=1).sum())

    rng = np.random.default_rng(1)
    assert all(distance(found) <= distance(found + 1e-3 * rng.normal(size=found.size)) for _ in range(50))


def krum(points: NDArray[Any], false: int) -> list[int]:
    """The rows that are taken: Blanchard's scores, all distances at once."""
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    scores = [np.sort(np.delete(row, i))[: len(points) - false - 2].sum() for i, row in enumerate(squares)]
    return sorted(np.argsort(scores, kind="stable")[: len(points) - false].tolist())


@pytest.mark.parametrize(
    ("count", "byzantine", "false"), [(5, 0.2, 1), (9, 0.2, 1), (10, 0.2, 2), (13, 0.4, 5)]
)
@pytest.mark.parametrize("seed", range(3))
def test_multi_krum(count: int, byzantine: float, false: int, seed: int) -> None:
    updates = drawn(seed, count)
    taken = krum(rows(updates), false)
    found = multi_krum.combine(UpdatesInMemory(updates), multi_krum.Options(byzantine=byzantine))
    assert sorted(found.dropped) == [n for i, n in enumerate(updates) if i not in taken]
    assert flat(found.update) == pytest.approx(rows(updates)[taken].mean(axis=0), rel=1e-12)


def test_multi_krum_drops_what_lies_apart_and_says_how_far() -> None:
    updates = drawn(1, 6)
    far = NodeId("pi-002")
    updates[far] = Weights({n: -3 * t for n, t in updates[far].items()})
    found = multi_krum.combine(UpdatesInMemory(updates), multi_krum.Options())
    (why,) = found.dropped.values()
    assert list(found.dropped) == [far]
    assert why.startswith("its distance to the 3 nearest updates is ")
    assert why.endswith("(run.combiner multi_krum drops 1 of 6)")


def test_multi_krum_finds_what_differs_in_the_last_digits_of_one_number() -> None:
    """Distances are sums of whole numbers: neither cancellation nor the order of additions decides."""
    same = Weights({"w": np.ones(5000, np.float32)})
    updates = {NodeId(f"pi-{i}"): same for i in range(5)}
    other = np.ones(5000, np.float32)
    other[77] += np.float32(1e-3)
    updates[NodeId("pi-3")] = Weights({"w": other})
    assert list(multi_krum.combine(UpdatesInMemory(updates), multi_krum.Options()).dropped) == ["pi-3"]


def test_of_equal_scores_the_first_by_name_is_taken() -> None:
    same = Weights({"w": np.ones(9, np.float32)})
    updates = {NodeId(f"pi-{i}"): same for i in (4, 2, 0, 1, 3)}
    assert list(multi_krum.combine(UpdatesInMemory(updates), multi_krum.Options()).dropped) == ["pi-4"]


def test_multi_krum_of_nothing_but_zeros() -> None:
    same = Weights({"w": np.zeros(9, np.float32)})
    updates = {NodeId(f"pi-{i}"): same for i in range(5)}
    assert not got(multi_krum, updates).any()
    assert not got(geometric_median, updates).any()


@pytest.mark.parametrize("byzantine", [0.01, 0.2, 0.25, 0.3, 0.4, 0.49])
def test_multi_krum_knows_how_many_updates_it_needs(byzantine: float) -> None:
    """2 f + 3 of them, and with any more there are always enough."""
    options = multi_krum.Options(byzantine=byzantine)
    holds = [n >= 2 * max(1, int(byzantine * n + 1e-9)) + 3 for n in range(1, 500)]
    assert multi_krum.least(options) == max(i for i, good in enumerate(holds, 1) if not good) + 1


@pytest.mark.parametrize("count", [5, 8, 10])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_multi_krum_says_the_distances_by_which_it_drops(count: int, size: float) -> None:
    updates = {
        node: Weights({name: (size * tensor).astype(np.float32) for name, tensor in update.items()})
        for node, update in drawn(count, count).items()
    }
    all_of_them, options = rows(updates), multi_krum.Options()
    squares = ((all_of_them[:, None] - all_of_them[None]) ** 2).sum(-1)
    false = max(1, int(0.2 * count + 1e-9))
    near = count - false - 2
    distances = np.sqrt(np.sort(squares + np.diag([np.inf] * count), axis=1)[:, :near].sum(axis=1))
    found = multi_krum.combine(UpdatesInMemory(updates), options)
    names = list(updates)
    assert set(found.dropped) == {names[i] for i in np.argsort(distances, kind="stable")[count - false :]}
    typical = np.sort(distances)[(count - 1) // 2]
    for node, why in found.dropped.items():
        shown = f"is {distances[names.index(node)]:.4g}, the median's is {typical:.4g}"
        assert shown in why
