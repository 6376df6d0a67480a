"""A virtual node's pictures are those that a real one reads from its folder, in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.stand_ins.regression import RegressionRuntime

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.manifest import PictureInput
from apiary.learn.partition import KINDS
from apiary_cli.datasets.partition import Pool, materialise
from apiary_cli.simulation.fleet import FleetProfile
from apiary_cli.simulation.shares import (
    Shares,
    Sharing,
    as_profiled,
    of_layout,
    open_pool,
    rows_of,
    share_out,
)
from apiary_cli.simulation.training import ShareTrainer, store

TO = PictureInput(height=8, width=8, channels=1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return open_pool("digits", tmp_path_factory.mktemp("pool") / "data", data_dir=None, seed=3, limit=300)


def digests(shares: Shares, folder: Path) -> list[tuple[str, ...]]:
    """Of each node's pictures, in the order in which it trains on them."""
    found, parts = shares.scan(shares.labels, TO)
    data = images.load(found, TO)
    store(folder, data, rows_of(data, found.records, parts))
    trainer = ShareTrainer(folder, RegressionRuntime())
    return [trainer.data(place, data.labels).digests for place in range(len(shares.names))]


@pytest.mark.parametrize("by", KINDS)
def test_shares_are_those_of_data_partition(pool: Pool, tmp_path: Path, by: str) -> None:
    laid = materialise("digits", tmp_path / "shares", nodes=5, by=by, seed=3, limit=300)
    virtual = share_out(pool, Sharing(5, by=by, seed=3))
    assert virtual.names == tuple(node.name for node in laid.nodes)
    assert (virtual.counts == laid.matrix()).all()
    real = [images.load(images.scan(node, laid.labels, TO), TO).digests for node in laid.nodes]
    assert digests(virtual, tmp_path / "virtual") == real
    assert digests(of_layout(tmp_path / "shares"), tmp_path / "laid") == real


def test_a_picture_that_cannot_be_read_is_on_no_node(pool: Pool, tmp_path: Path) -> None:
    laid = materialise("digits", tmp_path / "shares", nodes=3, seed=1, limit=60)
    victim = sorted(laid.nodes[1].rglob("*.png"))[2]
    victim.write_bytes(b"torn")
    shares = of_layout(tmp_path / "shares")
    found = digests(shares, tmp_path / "virtual")
    real = [images.load(images.scan(node, laid.labels, TO), TO).digests for node in laid.nodes]
    assert found == real
    assert len(found[1]) == shares.counts[1].sum() - 1


def test_drawn_shares_may_overlap_and_hold_no_picture_twice(pool: Pool) -> None:
    shares = share_out(pool, Sharing(500, alpha=0.3, each=12, seed=1))
    assert (shares.counts.sum(axis=1) == 12).all()
    assert all(len(set(part.tolist())) == 12 for part in shares.parts)
    assert len({int(i) for part in shares.parts for i in part}) > 200
    again = share_out(pool, Sharing(500, alpha=0.3, each=12, seed=1))
    assert all((a == b).all() for a, b in zip(shares.parts, again.parts, strict=True))
    alike = share_out(pool, Sharing(500, by="iid", each=12, seed=1))
    assert np.count_nonzero(alike.counts, axis=1).mean() > np.count_nonzero(shares.counts, axis=1).mean() + 2


def test_a_profiles_nodes_hold_what_they_reported(pool: Pool) -> None:
    label, other = pool.labels[0], pool.labels[1]
    nodes = [
        {"id": "pi-1", "labels": {label: 10, other: 1}},
        {"id": "pi-2", "labels": {label: 10, "unseen": 0}},
        {"id": "pi-3", "labels": {label: 9999}},
    ]
    shares = as_profiled(pool, FleetProfile.model_validate({"nodes": nodes}), seed=0)
    assert shares.names == ("pi-1", "pi-2", "pi-3")
    assert shares.counts[:2, :2].tolist() == [[10, 1], [10, 0]]
    assert shares.counts[2, 0] == np.count_nonzero(pool.y == 0), "never a picture twice on one node"
    assert not set(shares.parts[0].tolist()) & set(shares.parts[1].tolist())


def test_labels_that_the_data_set_has_not_are_refused(pool: Pool) -> None:
    profile = FleetProfile.model_validate({"nodes": [{"id": "pi-1", "labels": {"cat": 3}}]})
    with pytest.raises(DataError, match="node pi-1 of the profile has the label 'cat'"):
        as_profiled(pool, profile, seed=0)


def test_a_folder_without_shares_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no shares: apiary data partition"):
        of_layout(tmp_path)


@pytest.mark.parametrize(("each", "why"), [(0, "samples a node: 0"), (10_000, "cannot give a node 10000")])
def test_shares_that_cannot_be_drawn_are_refused(pool: Pool, each: int, why: str) -> None:
    with pytest.raises(DataError, match=why):
        share_out(pool, Sharing(2, each=each))
