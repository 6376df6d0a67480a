"""The index: one SQLite file, WAL, full sync at each commit. Several processes may have it open."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from apiary.errors import StoreError
from apiary.files import is_full

VERSION: Final = 1
BUSY_S: Final = 30.0
"""A writer waits this long for another one; the longest holds the lock for one batch of an import."""

_SCHEMA: Final = """
CREATE TABLE sample (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, origin TEXT NOT NULL, suffix TEXT NOT NULL,
    bytes INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    captured_at REAL NOT NULL, source TEXT NOT NULL, likeness INTEGER, held_out INTEGER NOT NULL,
    label TEXT, labelled_by TEXT, labelled_at REAL,
    suggested TEXT, probability REAL, model TEXT);
CREATE INDEX sample_origin ON sample (origin);
CREATE INDEX sample_label ON sample (label, held_out, number);
CREATE INDEX sample_open ON sample (suggested IS NOT NULL, number) WHERE label IS NULL;
CREATE INDEX sample_uncertain ON sample (probability, number) WHERE label IS NULL AND suggested IS NOT NULL;
CREATE TABLE total (count INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER sample_in AFTER INSERT ON sample BEGIN
    UPDATE total SET count = count + 1, bytes = bytes + NEW.bytes; END;
CREATE TRIGGER sample_out AFTER DELETE ON sample BEGIN
    UPDATE total SET count = count - 1, bytes = bytes - OLD.bytes; END;
CREATE TABLE tally (label TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER label_in AFTER INSERT ON sample WHEN NEW.label IS NOT NULL BEGIN
    INSERT INTO tally VALUES (NEW.label, 1) ON CONFLICT (label) DO UPDATE SET count = count + 1; END;
CREATE TRIGGER label_out AFTER DELETE ON sample WHEN OLD.label IS NOT NULL BEGIN
    UPDATE tally SET count = count - 1 WHERE label = OLD.label;
    DELETE FROM tally WHERE label = OLD.label AND count = 0; END;
CREATE TRIGGER label_from AFTER UPDATE OF label ON sample WHEN OLD.label IS NOT NULL BEGIN
    UPDATE tally SET count = count - 1 WHERE label = OLD.label;
    DELETE FROM tally WHERE label = OLD.label AND count = 0; END;
CREATE TRIGGER label_to AFTER UPDATE OF label ON sample WHEN NEW.label IS NOT NULL BEGIN
    INSERT INTO tally VALUES (NEW.label, 1) ON CONFLICT (label) DO UPDATE SET count = count + 1; END;
CREATE TABLE labelling (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL);
CREATE TABLE change (
    labelling INTEGER NOT NULL REFERENCES labelling ON DELETE CASCADE, id TEXT NOT NULL,
    label TEXT, labelled_by TEXT, labelled_at REAL);
CREATE INDEX change_labelling ON change (labelling);
CREATE TABLE gone (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, origin TEXT NOT NULL,
    by_owner INTEGER NOT NULL);
CREATE INDEX gone_origin ON gone (origin);
CREATE INDEX gone_owner ON gone (by_owner, number);
"""
_LATER: Final = """
CREATE TABLE IF NOT EXISTS label_number (label TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID"""
# label_number: the order in which labels came, so that their keys stay; programs before it ignore the table.
# total, tally: kept by triggers, so that taking a picture costs the same in a large store.
# sample.origin: sha256 of the bytes as they were given, before metadata was taken out.
# sample.likeness: 64 bit perceptual hash of captured frames, as SQLite's signed integer.
# change: the former label of each sample of a labelling, for undo.
# gone: what was deleted or evicted, so that its cached pixels can be removed once more after a training that
# ran meanwhile, and so that the camera's folder does not bring back what the owner deleted.


_FULL: Final = "the disk is full: free some space, nothing that was stored is lost"
_DAMAGED: Final = "restore it from a backup, or move the folder away and import its pictures again"


def connect(file: Path) -> sqlite3.Connection:
    """Open the index, making it where there is none. Raises StoreError."""
    try:
        db = sqlite3.connect(file, isolation_level=None, timeout=BUSY_S)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA foreign_keys=ON")
            # What is deleted is overwritten in the file: labels and sources are the owner's, too.
            db.execute("PRAGMA secure_delete=ON")
            db.execute("PRAGMA cache_size=-1024")
            _ensure_schema(db, file)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as e:
        advice = _FULL if is_full(file.parent) else _DAMAGED
        raise StoreError(f"the sample index {file} cannot be opened: {e}; {advice}") from e
    return db


@contextmanager
def writing(db: sqlite3.Connection, file: Path) -> Iterator[None]:
    """One transaction that holds the only write lock from its beginning. Raises StoreError."""
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    except sqlite3.Error as e:
        raise StoreError(f"the sample index {file} cannot be written: {e}{_advice(e)}") from e


def _ensure_schema(db: sqlite3.Connection, file: Path) -> None:
    with writing(db, file):
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            # Not executescript, which would commit what came before it: all of it, or none.
            for statement in _statements(_SCHEMA):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise StoreError(
                f"the sample index {file} has version {version}, this program writes {VERSION}: "
                "update Apiary on this node"
            )
        db.execute(_LATER)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _advice(e: sqlite3.Error) -> str:
    text = str(e)
    if "full" in text:
        return f"; {_FULL}"
    if "locked" in text:
        return f"; another process has held it for {BUSY_S:.0f} s"
    if "readonly" in text:
        return "; this user may not write there, or the file system is read-only"
    return ""
