"""After each step that a party speaks of, the power may go: nothing of it is lost.

The tests of cuts stop a process, and what it wrote stays in the kernel's memory: a sync that is missing makes
no difference to them. Here a disk is imitated that keeps only what was synced.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.stand_ins.disk_trace import unsynced
from tests.unit.edge.releases.installed_releases import GOOD, blob, installed, release
from tests.unit.edge.samples.parts import fill, opened, picture
from tests.unit.edge.transfer.transferred import DATA, DIGEST, download_all, offer

from apiary.blobs import BlobStore
from apiary.files import write_atomic
from apiary_coordinator.journal import Journal
from apiary_coordinator.updates.spool import Spool
from apiary_edge.releases.store import ReleaseStore, folder_of
from apiary_edge.samples.model import Incoming
from apiary_edge.training.process import scratch
from apiary_edge.transfer.outbox import Outbox


def test_the_disk_of_these_tests_sees_what_is_missing(tmp_path: Path) -> None:
    def careless() -> None:
        (tmp_path / "a").write_bytes(b"never synced")
        with (tmp_path / "b").open("wb") as f:
            f.write(b"synced, but not its name")
            f.flush()
            os.fsync(f.fileno())
        write_atomic(tmp_path / "c" / "d", b"x", sync=False)

    assert unsynced(tmp_path, careless) == {".", "a", "c", "c/d"}
    assert unsynced(tmp_path, lambda: write_atomic(tmp_path / "e", b"x")) == set()


def test_an_update_that_is_offered(tmp_path: Path) -> None:
    outbox, made = Outbox(tmp_path / "outbox"), scratch(tmp_path) / "update.blob"
    write_atomic(made, DATA)
    assert unsynced(tmp_path, lambda: outbox.put(made, offer(DATA, 1))) == set()
    assert [o.round for o in outbox.waiting()] == [1]


def test_a_round_that_is_done(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    assert unsynced(tmp_path, lambda: outbox.set_done("r", 7)) == set()


def test_a_blob_that_is_here(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    assert unsynced(tmp_path, lambda: store.put(DATA)) == set()
    store.remove(DIGEST)
    assert unsynced(tmp_path, lambda: download_all(store)) == set()


def test_updates_that_are_receipted(tmp_path: Path) -> None:
    def take() -> None:
        spool = Spool(tmp_path / "spool" / "r-1.spool", len(DATA))
        spool.write(spool.allocate(1), 0, DATA)
        spool.sync()

    # The folder's own name is in the state folder, which the journal's first commit syncs.
    assert unsynced(tmp_path, take) <= {"."}


def test_a_release_that_is_current_and_the_one_before_it(tmp_path: Path) -> None:
    shelf = installed(tmp_path, "one")
    file = blob(tmp_path, "two")
    with file.open("rb") as f:
        os.fsync(f.fileno())  # as the store of blobs has it

    def swap() -> None:
        shelf.take(file, release("two"))
        shelf.swap(release("two"), GOOD)

    assert unsynced(tmp_path, swap) == set()
    assert unsynced(tmp_path, lambda: ReleaseStore(folder_of(tmp_path)).restore()) <= {"slots/files"}


def test_a_release_from_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, file = installed(tmp_path, "one"), blob(tmp_path, "two")

    def no_link(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", no_link)
    assert unsynced(folder_of(tmp_path), lambda: shelf.take(file, release("two"))) == set()


def test_pictures_that_were_taken_in(tmp_path: Path) -> None:
    store = opened(tmp_path)
    one = Incoming(picture(1), "camera", "cat")
    assert files_of(unsynced(tmp_path, lambda: store.add(one))) == set()
    store.close()


def test_a_batch_of_pictures_is_synced_before_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one call for the whole file system, which this disk does not know: its place is looked at."""
    store = opened(tmp_path)
    counted: list[int] = []
    real = store._pictures.sync

    def sync() -> None:
        real()
        written = len(list((tmp_path / "samples" / "pictures").glob("*/*.jpg")))
        other = sqlite3.connect(tmp_path / "samples" / "samples.sqlite")
        counted.append(written - other.execute("SELECT COUNT(*) FROM sample").fetchone()[0])
        other.close()

    monkeypatch.setattr(store._pictures, "sync", sync)
    fill(store, 10)
    assert counted == [10], "ten files were there, and no row of them"
    store.close()


@pytest.mark.parametrize(
    "index",
    [lambda folder: Journal(folder)._db, lambda folder: opened(folder)._db],
    ids=["the journal", "the sample store"],
)
def test_every_commit_is_synced(tmp_path: Path, index: Callable[[Path], sqlite3.Connection]) -> None:
    db = index(tmp_path)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def files_of(names: set[str]) -> set[str]:
    """Without what SQLite does itself."""
    return {name for name in names if "sqlite" not in name and name not in ("samples", "samples/reserve")}
