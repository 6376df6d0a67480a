"""Whose pictures are whose in a simulated fleet: a data set shared out, shares on disk, a fleet's mixtures.

The pictures lie in one array; a node's share is rows of it. Rows are in the order in which a real node reads
its folder, so that training draws the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn import partition as partitioning
from apiary.learn.images import Dataset, PictureRecord, Scan
from apiary.learn.manifest import PictureInput
from apiary_cli.datasets.partition import Pool, materialise_pool, read_layout
from apiary_cli.simulation.fleet import FleetProfile

Rows = NDArray[np.int64]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a data set is shared out; as `apiary data partition`. With `each` nodes draw so many pictures of
    their mixtures, and one picture may be on several.
    """

    nodes: int
    by: str = "dirichlet"
    alpha: float = 0.5
    shards: int = 2
    sigma: float = 1.0
    seed: int = 0
    each: int | None = None


@dataclass(frozen=True, slots=True)
class Shares:
    """`counts` int64[nodes, labels]; `folders` hold the pictures, `parts` name each node's by file.

    Without `parts` each folder is the share of one node.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    test_data: Path
    folders: tuple[Path, ...]
    files: tuple[Path, ...] = ()
    parts: tuple[Rows, ...] = ()

    def scan(self, labels: Sequence[str], to: PictureInput) -> tuple[Scan, list[Rows]]:
        """Every picture, and each node's rows among them. Raises DataError."""
        found = [images.scan(folder, labels, to) for folder in self.folders]
        records = tuple(record for one in found for record in one.records)
        skipped = tuple(s for one in found for s in one.skipped)
        scan = Scan(self.folders[0].parent, records, tuple(labels), {}, skipped)
        if not self.parts:
            ends = np.cumsum([len(one.records) for one in found])
            return scan, [
                np.arange(end - len(one.records), end) for end, one in zip(ends, found, strict=True)
            ]
        place = {record.path: i for i, record in enumerate(records)}
        at = np.array([place.get(file, -1) for file in self.files], np.int64)
        return scan, [np.sort(kept[kept >= 0]) for kept in (at[part] for part in self.parts)]


def rows_of(data: Dataset, records: Sequence[PictureRecord], parts: Sequence[Rows]) -> list[Rows]:
    """Each node's rows of what was loaded: pictures that could not be read are gone from it."""
    lost = {skipped.path for skipped in data.skipped}
    if not lost:
        return list(parts)
    kept = np.array([record.path not in lost for record in records])
    row = np.cumsum(kept) - 1
    return [row[part[kept[part]]] for part in parts]


def of_layout(folder: Path) -> Shares:
    """The shares that `apiary data partition` wrote to `folder`. Raises DataError."""
    layout = read_layout(folder)
    if layout is None:
        raise DataError(
            f"{folder} holds no shares: apiary data partition SOURCE --nodes N --out {folder} makes them"
        )
    names = tuple(node.name for node in layout.nodes)
    return Shares(names, tuple(layout.labels), layout.matrix(), layout.server, tuple(layout.nodes))


def share_out(pool: Pool, how: Sharing) -> Shares:
    """Share a data set's pictures out among `how.nodes` virtual nodes. Raises DataError.

    Without `each` they are the shares that `apiary data partition` makes with the same seed.
    """
    names = tuple(f"node-{i + 1}" for i in range(how.nodes))
    if how.each is not None:
        parts = partitioning.draw(
            pool.y, how.nodes, how.each, alpha=how.alpha if how.by == "dirichlet" else None, seed=how.seed
        )
    else:
        parts = partitioning.partition(
            pool.y, how.nodes, by=how.by, alpha=how.alpha, shards=how.shards, sigma=how.sigma, seed=how.seed
        )
    return _shares(pool, names, parts)


def as_profiled(pool: Pool, profile: FleetProfile, seed: int) -> Shares:
    """For each node of a profile as many pictures of each label as it reported. Raises DataError.

    Pictures of a label are dealt out in turn by seed; where the fleet has more than the data set, some are on
    several nodes.
    """
    place = {label: i for i, label in enumerate(pool.labels)}
    rng = np.random.default_rng([seed, 5])
    dealt = {label: rng.permutation(np.flatnonzero(pool.y == i)) for label, i in place.items()}
    used = dict.fromkeys(place, 0)
    parts = []
    for node in profile.nodes:
        mine: list[Rows] = [np.empty(0, np.int64)]
        for label, wanted in node.labels.items():
            if wanted and label not in place:
                raise DataError(
                    f"node {node.id} of the profile has the label {label!r}, the data set has "
                    f"{', '.join(pool.labels[:12])}: simulate it with pictures of its own labels"
                )
            if not wanted:
                continue
            deck = dealt[label]
            take = min(wanted, deck.size)  # a node has no picture twice
            mine.append(deck[(used[label] + np.arange(take)) % deck.size])
            used[label] += take
        parts.append(np.sort(np.concatenate(mine)))
    return _shares(pool, tuple(node.id for node in profile.nodes), parts)


def open_pool(
    source: str | Path,
    out: Path,
    *,
    data_dir: Path | None,
    seed: int,
    limit: int | None = None,
    on_progress: OnProgress | None = None,
) -> Pool:
    """A data set's pictures in one folder, and its held-out ones in another. Raises DataError, StoreError."""
    return materialise_pool(source, out, seed=seed, limit=limit, data_dir=data_dir, on_progress=on_progress)


def _shares(pool: Pool, names: tuple[str, ...], parts: Sequence[Rows]) -> Shares:
    return Shares(
        names,
        tuple(pool.labels),
        partitioning.count(pool.y, parts, len(pool.labels)),
        pool.server,
        (pool.folder,),
        tuple(pool.files),
        tuple(parts),
    )
