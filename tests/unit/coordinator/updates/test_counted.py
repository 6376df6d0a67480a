"""Updates that count: by node, in the sum or in blocks, and without some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.stand_ins.updates import drawn, flat, spooled, weighed

from apiary.errors import ModelError, StoreError
from apiary_coordinator.combiners import base

UPDATES = drawn(1, 5)
SAMPLES = weighed(UPDATES)
NODES = sorted(UPDATES)


def test_they_are_in_the_order_of_their_nodes(tmp_path: Path) -> None:
    with spooled(tmp_path / "x", UPDATES, SAMPLES, summed=False, order=reversed(NODES)) as counted:
        assert counted.nodes == NODES
        assert counted.samples == [SAMPLES[node] for node in NODES]
        (block,) = counted.blocks()
        assert block.tobytes() == np.stack([flat(UPDATES[node]) for node in NODES]).tobytes()
        assert counted.by_node[NODES[2]].norm == UPDATES[NODES[2]].norm()


@pytest.mark.parametrize("numbers", [5, 15, 60, 10_000])
def test_blocks_have_all_coordinates_once(
    numbers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "BLOCK_NUMBERS", numbers)
    with spooled(tmp_path / "x", UPDATES, SAMPLES, summed=False) as counted:
        blocks = [block.copy() for block in counted.blocks()]
    assert all(block.size <= numbers for block in blocks)
    whole = np.stack([flat(UPDATES[node]) for node in NODES])
    assert np.concatenate(blocks, axis=1).tobytes() == whole.tobytes()


def test_without_some_and_without_more(tmp_path: Path) -> None:
    one, two = frozenset(NODES[:1]), frozenset(NODES[:2])
    for summed in (True, False):
        with spooled(tmp_path / "x", UPDATES, SAMPLES, summed=summed) as counted:
            before = {n: t.tobytes() for n, t in counted.mean().items()} if summed else {}
            with counted.without(one):
                assert counted.nodes == NODES[1:]
                with counted.without(two):
                    assert counted.nodes == NODES[2:]
                assert counted.nodes == NODES[1:]
            with pytest.raises(KeyError), counted.without(two):
                raise KeyError
            assert counted.nodes == NODES
            assert not summed or {n: t.tobytes() for n, t in counted.mean().items()} == before


def test_a_way_that_they_are_not_kept_for_is_refused(tmp_path: Path) -> None:
    with (
        spooled(tmp_path / "x", UPDATES, SAMPLES, summed=True) as counted,
        pytest.raises(ModelError, match="summed"),
    ):
        next(counted.blocks())
    with (
        spooled(tmp_path / "x", UPDATES, SAMPLES, summed=False) as counted,
        pytest.raises(ModelError, match="not summed"),
    ):
        counted.mean()


def test_a_spool_that_ends_early_is_the_disks_trouble(tmp_path: Path) -> None:
    with spooled(tmp_path / "x", UPDATES, SAMPLES, summed=False) as counted:
        (tmp_path / "x").open("r+b").truncate(4096)
        with pytest.raises(StoreError, match="ends within an update"):
            next(counted.blocks())


def test_a_sum_that_is_freed_is_none_any_more(tmp_path: Path) -> None:
    with spooled(tmp_path / "x", UPDATES, SAMPLES, summed=True) as counted:
        counted.mean()
        counted.drop_sum()
        with pytest.raises(ModelError, match="not summed"):
            counted.mean()


def test_the_mean_without_some_is_that_of_the_others(tmp_path: Path) -> None:
    gone = frozenset(NODES[1:3])
    left = {node: update for node, update in UPDATES.items() if node not in gone}
    with spooled(tmp_path / "x", UPDATES, SAMPLES, summed=True) as counted, counted.without(gone):
        without = {n: t.copy() for n, t in counted.mean().items()}
    with spooled(tmp_path / "y", left, SAMPLES, summed=True) as others:
        for name, tensor in others.mean().items():
            assert tensor == pytest.approx(without[name], abs=1e-7), name
