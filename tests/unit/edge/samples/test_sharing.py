"""The sample store in several processes, reconciled, damaged, large, and cut while it syncs."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest
from tests.unit.edge.samples.parts import fill, opened, picture

from apiary.errors import StoreError
from apiary_edge.samples import layout
from apiary_edge.samples.model import (
    Filter,
    Incoming,
    Order,
)


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    """Eight children add the same and different pictures at once; one opens and reconciles meanwhile."""
    opened(tmp_path).close()
    pids = []
    for child in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                mine = opened(tmp_path)
                for i in range(10):
                    mine.add(Incoming(picture(i), "shared"))
                    mine.add(Incoming(picture(1000 + child * 10 + i), "own"))
                    if child == 0:
                        assert mine.reconcile() == 0
                os._exit(0)
            except BaseException:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    store = opened(tmp_path)
    assert store.reconcile() == 0
    assert store.counts().total == 10 + 80
    assert all((store.path(s.id) or Path()).is_file() for s in store.page(limit=200).samples)
    store.close()


def test_reconciling_removes_files_without_a_row_and_rows_without_a_file(tmp_path: Path) -> None:
    store = opened(tmp_path)
    ids = fill(store, 5)
    lost = store.path(ids[0])
    assert lost is not None
    lost.unlink()
    folder = lost.parent
    (folder / f"{'0' * 64}.jpg").write_bytes(b"orphan")
    (folder / ".half.jpg.x.part").write_bytes(b"torn")
    (folder / "link.jpg").symlink_to("/etc/passwd")
    swapped = store.path(ids[1])
    assert swapped is not None
    swapped.unlink()
    swapped.symlink_to("/etc/passwd")
    assert store.reconcile() == 6
    assert {s.id for s in store.page().samples} == set(ids[2:])
    assert len([p for p in (tmp_path / "samples" / "pictures").rglob("*") if p.is_file()]) == 3
    assert Path("/etc/passwd").is_file() and store.reconcile() == 0
    store.close()


def test_a_store_of_a_later_version_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    file = tmp_path / "samples" / "samples.sqlite"
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(StoreError, match="has version 7, this program writes 1: update Apiary on this node"):
        opened(tmp_path)
    for leftover in file.parent.glob("samples.sqlite*"):
        leftover.unlink()
    file.write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match=r"cannot be opened: .*; restore it"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot use the folder .*samples"):
        opened(tmp_path)


def test_a_store_of_20_000_answers_quickly(tmp_path: Path) -> None:
    store = opened(tmp_path)
    rows = [
        (
            hashlib.sha256(str(i).encode()).hexdigest(),
            i,
            "cat" if i % 4 == 0 else None,
            i % 2 or None,
            i / 20_000,
        )
        for i in range(20_000)
    ]
    db = sqlite3.connect(tmp_path / "samples" / "samples.sqlite")
    db.executemany(
        "INSERT INTO sample (id, origin, suffix, bytes, width, height, captured_at, source, held_out, label,"
        " suggested, probability)"
        " SELECT ?1, ?1, 'jpg', 100, 8, 8, ?2, 's', 0, ?3, CASE WHEN ?4 THEN 'dog' END,"
        " CASE WHEN ?4 THEN ?5 END",
        rows,
    )
    db.commit()
    db.close()
    for order in Order:
        assert store.page(Filter(labelled=False), order, limit=50, offset=200).total == 15_000
    assert store.counts().total == 20_000
    assert len(store.training()) == 5_000
    assert store.recent_likeness(64) == []
    store.close()


def test_syncing_a_batch_that_fails_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)

    def fails(_: layout.Pictures) -> None:
        raise StoreError("cannot sync: Input/output error")

    monkeypatch.setattr(layout.Pictures, "sync", fails)
    with pytest.raises(StoreError, match="Input/output error"):
        fill(store, 3)
    assert store.counts().total == 0
    assert not [p for p in (tmp_path / "samples" / "pictures").rglob("*") if p.is_file()]
    store.close()
