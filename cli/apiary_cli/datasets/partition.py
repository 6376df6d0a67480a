"""Lay a data set out on disk as a fleet would hold it: a folder a node, and the server's held-out ones."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError, StoreError, TopicError
from apiary.files import write_json
from apiary.learn import partition as partitioning
from apiary.learn.folder import labels as naming
from apiary.wire.topics import check_name
from apiary_cli.datasets.folders import FolderSource, OnProgress, open_folders
from apiary_cli.datasets.sources import Source, hardhat_folders, hardhat_source, open_source

RECORD: Final = "partition.json"
SERVER: Final = "server"
Job = tuple[str, NDArray[np.int64], NDArray[np.int64], str]
"""Split, indices into it, its labels, and the folder that gets them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Folders LABEL/* of each node and of the server, and how many pictures of each label each holds."""

    nodes: list[Path]
    server: Path
    labels: list[str]
    counts: dict[str, dict[str, int]]
    """By folder name: `node-1`, ..., `server`."""
    notes: list[str] = field(default_factory=list, compare=False)
    """How the source was understood, and what is wrong with it; empty where it was laid out before."""

    def matrix(self) -> NDArray[np.int64]:
        """int64[nodes, labels], without the server."""
        return np.array([[self.counts[n.name].get(c, 0) for c in self.labels] for n in self.nodes], np.int64)


def materialise(
    source: str | Path,
    out_dir: Path,
    *,
    nodes: int,
    by: str = "iid",
    alpha: float = 0.5,
    shards: int = 2,
    sigma: float = 1.0,
    seed: int = 0,
    test_share: float = 0.2,
    limit: int | None = None,
    data_dir: Path | None = None,
    join_labels: bool = False,
    on_progress: OnProgress | None = None,
) -> Layout:
    """Partition `source` into `out_dir`/node-1 ... node-N and `out_dir`/server.

    `source` and `data_dir` are as in `open_source`. A test split of the source goes to the server whole,
    otherwise `test_share` of each class does. `limit` draws that many training pictures (and as large a
    share of the test split) by seed. The same wish upon a finished `out_dir` returns it as it is; another
    one is refused. Raises DataError, StoreError.
    """
    wish = {
        "source": str(source), "nodes": nodes, "by": by, "alpha": alpha, "shards": shards, "sigma": sigma,
        "seed": seed, "test_share": test_share, "limit": limit,
    }  # fmt: skip
    if join_labels:
        wish["join_labels"] = True
    if done := _finished(out_dir, wish):
        return done
    opened = open_source(source, data_dir, join_labels=join_labels, on_progress=on_progress)
    train, test, test_split = _split(opened, test_share, seed, limit)
    y_train = opened.y_train[train]
    parts = partitioning.partition(y_train, nodes, by=by, alpha=alpha, shards=shards, sigma=sigma, seed=seed)
    jobs: list[Job] = [
        ("train", train[part], opened.y_train, f"node-{i + 1}") for i, part in enumerate(parts)
    ]
    y_server = opened.y_test if test_split == "test" else opened.y_train
    jobs.append((test_split, test, y_server, "server"))
    return _write(opened, jobs, out_dir, wish, on_progress)


@dataclass(frozen=True, slots=True)
class Pool:
    """A data set's training pictures in one `folder`, its held-out ones in `server`; both LABEL/*.

    `files` and their labels `y`, as indices into `labels`, are in the order in which `materialise` shares
    them out.
    """

    folder: Path
    server: Path
    labels: list[str]
    files: list[Path]
    y: NDArray[np.int64]


def materialise_pool(
    source: str | Path,
    out_dir: Path,
    *,
    seed: int = 0,
    test_share: float = 0.2,
    limit: int | None = None,
    data_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Pool:
    """Lay out what `materialise` would share out, unshared. Raises DataError, StoreError."""
    opened = open_source(source, data_dir, on_progress=on_progress)
    train, test, test_split = _split(opened, test_share, seed, limit)
    y_server = opened.y_test if test_split == "test" else opened.y_train
    jobs: list[Job] = [("train", train, opened.y_train, "pool"), (test_split, test, y_server, SERVER)]
    layout = _write(opened, jobs, out_dir, {"source": str(source), "by": "pool", "seed": seed}, on_progress)
    y = opened.y_train[train]
    folder = out_dir / "pool"
    files = [
        folder / opened.labels[int(label)] / opened.file_name("train", int(i))
        for i, label in zip(train, y, strict=True)
    ]
    return Pool(folder, layout.server, layout.labels, files, y)


def materialise_owners(
    folders: list[Path],
    out_dir: Path,
    *,
    seed: int = 0,
    test_share: float = 0.2,
    join_labels: bool = False,
    on_progress: OnProgress | None = None,
) -> Layout:
    """A node of each folder, with its name where that can be a node's, and one held-out set of all.

    What a folder sets apart for testing goes to the server; of one that does not, `test_share` of each class
    does. Raises DataError, StoreError.
    """
    wish = {
        "source": [str(folder) for folder in folders], "nodes": len(folders), "by": "as held", "seed": seed,
        "test_share": test_share, "join_labels": join_labels,
    }  # fmt: skip
    if done := _finished(out_dir, wish):
        return done
    source = open_folders(folders, join_labels=join_labels, on_progress=on_progress)
    names = _node_names(folders)
    called = [folder.resolve().name for folder in folders]
    if names != called:
        named = ", ".join(f"{naming.shown(a)} is {b}" for a, b in zip(called, names, strict=True))
        source.notes.append(f"not every folder's name can be a node's, or they are alike: {named}")
    jobs: list[Job] = []
    tests_itself = {next(i for i, f in enumerate(folders) if p.is_relative_to(f)) for p, _ in source.test}
    held: list[NDArray[np.int64]] = []
    for owner, name in enumerate(names):
        own = np.flatnonzero(source.owners == owner)
        if own.size == 0:
            raise DataError(f"{folders[owner]} holds no picture to train on")
        if owner not in tests_itself:
            keep, out = partitioning.hold_out(source.y_train[own], test_share, seed=seed)
            held.append(own[out])
            own = own[keep]
        jobs.append(("train", own, source.y_train, name))
    jobs.append(("test", np.arange(source.y_test.size), source.y_test, SERVER))
    jobs.append(("train", np.concatenate([np.empty(0, np.int64), *held]), source.y_train, SERVER))
    return _write(source, jobs, out_dir, wish, on_progress)


def _node_names(folders: list[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    fit = all(_is_node_name(name) for name in names)
    return names if fit and len(set(names)) == len(names) else [f"node-{i + 1}" for i in range(len(names))]


def _is_node_name(name: str) -> bool:
    try:
        return check_name(name, "node") != SERVER
    except TopicError:
        return False


def hardhat_layout(data_dir: Path, out_dir: Path) -> Layout:
    """The hard-hat pictures as their two clients hold them; the server evaluates on all three test folders.

    `data_dir` holds `dataset_client1`, `dataset_client2` and `dataset_server`, or `hardhat/` that does; the
    pictures are linked (or copied) into `out_dir`. Raises DataError, StoreError.
    """
    wish = {"source": "hardhat", "nodes": 2, "by": "as held"}
    if done := _finished(out_dir, wish):
        return done
    parts = hardhat_folders(data_dir)
    source = hardhat_source(parts)
    held_by = np.array([name.startswith(f"{parts[1].name}-") for _, name in source.train])
    jobs = [
        ("train", np.flatnonzero(~held_by), source.y_train, "node-1"),
        ("train", np.flatnonzero(held_by), source.y_train, "node-2"),
        ("test", np.arange(source.y_test.size), source.y_test, "server"),
    ]
    return _write(source, jobs, out_dir, wish, None)


def read_layout(out_dir: Path) -> Layout | None:
    """The layout that a finished `out_dir` holds, None where there is none. Raises DataError."""
    record = _read_record(out_dir)
    return _layout(out_dir, record) if record else None


def _split(
    source: Source, test_share: float, seed: int, limit: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Indices to train on and to test on, and which of the source's splits the test comes from."""
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, expected 1 or more pictures")
    if source.y_train.size == 0:
        raise DataError("the source holds no pictures to train on")
    own_test = source.y_test.size > 0
    if own_test:
        train, test = np.arange(source.y_train.size), np.arange(source.y_test.size)
    else:
        train, test = partitioning.hold_out(source.y_train, test_share, seed=seed)
    if limit is not None and limit < train.size:
        share = limit / train.size
        train = _draw(train, source.y_train, share, seed)
        test = _draw(test, source.y_test if own_test else source.y_train, share, seed)
    if test.size == 0:
        raise DataError(
            f"{source.y_train.size} pictures leave none to test on: add pictures or raise the test share"
        )
    return train, test, "test" if own_test else "train"


def _draw(
    indices: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.int64]:
    """`share` of the indices rounded, at least one, with the classes as common as before."""
    rng = np.random.default_rng([seed, 2])
    classes, sizes = np.unique(labels[indices], return_counts=True)
    wanted = max(round(share * indices.size), 1)
    exact = sizes * (wanted / indices.size)
    take = np.floor(exact).astype(np.int64)
    take[np.argsort(take - exact, kind="stable")[: wanted - int(take.sum())]] += 1
    drawn = [rng.permutation(indices[labels[indices] == c])[:n] for c, n in zip(classes, take, strict=True)]
    return np.sort(np.concatenate(drawn))


def _write(
    source: Source, jobs: list[Job], out_dir: Path, wish: dict[str, Any], on_progress: OnProgress | None
) -> Layout:
    """Write all folders beside `out_dir` and move them there whole, so that a break leaves nothing half."""
    if out_dir.exists() and any(out_dir.iterdir()):
        raise DataError(f"{out_dir} is not empty: name another folder, or remove it first")
    building = out_dir.with_name(f".{out_dir.name}.part")
    shutil.rmtree(building, ignore_errors=True)
    total, done = sum(indices.size for _, indices, _, _ in jobs), 0
    counts: dict[str, dict[str, int]] = {}
    try:
        for split, indices, y, name in jobs:
            # The server has a folder for every label, so that it names them all; a node for what it holds.
            held = np.bincount(y[indices], minlength=len(source.labels))
            here = Counter({c: int(n) for c, n in zip(source.labels, held, strict=True) if n})
            counts[name] = dict(Counter(counts.get(name, {})) + here)
            for label, n in zip(source.labels, held, strict=True):
                if n or name == SERVER:
                    (building / name / label).mkdir(parents=True, exist_ok=True)
            for i in indices:
                source.write(split, int(i), building / name / source.labels[int(y[i])])
                done += 1
                if on_progress and (done % 50 == 0 or done == total):
                    on_progress(done, total)
        record = {"v": 1, "wish": wish, "labels": source.labels, "counts": counts}
        write_json(building / RECORD, record, indent=2)
        if out_dir.exists():
            out_dir.rmdir()
        building.replace(out_dir)
    except OSError as e:
        raise StoreError(f"cannot lay out {out_dir}: {e.strerror or e} ({e.filename or building})") from e
    finally:
        shutil.rmtree(building, ignore_errors=True)
    notes = source.notes if isinstance(source, FolderSource) else []
    return replace(_layout(out_dir, record), notes=notes)


def _finished(out_dir: Path, wish: dict[str, Any]) -> Layout | None:
    record = _read_record(out_dir)
    if record is None:
        return None
    if record["wish"] != wish:
        was = ", ".join(f"{k}={record['wish'].get(k)}" for k in wish if record["wish"].get(k) != wish[k])
        raise DataError(f"{out_dir} holds another partition ({was}): name another folder, or remove it")
    return _layout(out_dir, record)


def _read_record(out_dir: Path) -> dict[str, Any] | None:
    path = out_dir / RECORD
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ok = isinstance(record["wish"], dict) and isinstance(record["counts"], dict) and record["labels"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    if not ok:
        raise DataError(f"{path} is not one of ours: remove it or name another folder")
    return record


def _layout(out_dir: Path, record: dict[str, Any]) -> Layout:
    counts = {str(k): dict(v) for k, v in record["counts"].items()}
    nodes = [out_dir / name for name in counts if name != SERVER]
    return Layout(nodes, out_dir / SERVER, list(record["labels"]), counts)
