"""On disk: the newest message of each signer on each topic, and a counter that never goes back.

The counter survives a power cut at any instant, and a clock that is set back. Marks survive a kill at any
instant; a power cut may take those of the last seconds back, so that a node writes its card less.
"""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from apiary.errors import StoreError

MAX_MARKS: Final = 100_000
"""Signers times topics, about 10 MB; beyond, the oldest is forgotten, which only its signer could use."""
AHEAD_MS: Final = 60_000
"""The counter is written down for a minute ahead: one small write a minute at most, not one a message."""
RETRY_MS: Final = 5_000
"""A counter that the disk did not take is written again after this."""
log = logging.getLogger(__name__)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS mark
    (signer TEXT, topic TEXT, issued INTEGER NOT NULL, PRIMARY KEY (signer, topic)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS mark_by_age ON mark (issued);
CREATE TABLE IF NOT EXISTS counter (ceiling INTEGER NOT NULL);
"""
_FORGET_OLDEST: Final = """
DELETE FROM mark WHERE (signer, topic) IN (SELECT signer, topic FROM mark ORDER BY issued LIMIT 1)
"""


class DiskMarks:
    """`signing.Marks`, and the counter for a `Signer`, in one SQLite file; None: in memory only.

    For one thread of one process.
    """

    def __init__(self, path: Path | None, wall: Callable[[], float], *, max_marks: int = MAX_MARKS):
        self._path = path
        self._wall = wall
        self._max = max_marks
        self._write_at = 0
        try:
            self._db = sqlite3.connect(":memory:", isolation_level=None) if path is None else _on_disk(path)
            self._db.executescript(_SCHEMA)
            (ceiling,) = self._db.execute("SELECT max(ceiling) FROM counter").fetchone()
            self._last = self._ceiling = ceiling or 0
            (self._count,) = self._db.execute("SELECT count(*) FROM mark").fetchone()
        except (OSError, sqlite3.Error) as e:
            raise StoreError(f"cannot keep what was signed in {path}: {e}") from None

    def admit(self, signer: str, topic: str, issued: int) -> int:
        """Remember `issued` if it is the newest; returns what was the newest before (0: none)."""
        try:
            row = self._db.execute(
                "SELECT issued FROM mark WHERE signer = ? AND topic = ?", (signer, topic)
            ).fetchone()
            newest = int(row[0]) if row else 0
            if issued > newest or row is None:
                self._db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", (signer, topic, issued))
                self._count += row is None
                if self._count > self._max:
                    self._db.execute(_FORGET_OLDEST)
                    self._count -= 1
        except sqlite3.Error as e:
            raise StoreError(f"cannot keep what was signed in {self._path}: {e}") from None
        return newest

    def issue(self) -> int:
        """The clock in milliseconds since 1970, or one more than the last number where that is larger.

        Raises nothing: what is sealed is often the last step of something that is written down already.
        """
        self._last = max(int(self._wall() * 1000), self._last + 1)
        if self._last >= max(self._ceiling, self._write_at):
            self._write_ceiling(self._last + AHEAD_MS)
        return self._last

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _write_ceiling(self, ceiling: int) -> None:
        """Where the disk refuses, messages leave all the same: only a clock set back could make them old."""
        try:
            # A Pi wakes from a power cut with the clock of yesterday: this must have reached the disk.
            self._db.execute("PRAGMA synchronous=FULL")
            try:
                with self._db:
                    self._db.execute("BEGIN")
                    self._db.execute("DELETE FROM counter")
                    self._db.execute("INSERT INTO counter VALUES (?)", (ceiling,))
            finally:
                self._db.execute("PRAGMA synchronous=NORMAL")
            self._ceiling = ceiling
        except sqlite3.Error as e:
            self._write_at = self._last + RETRY_MS
            log.error(
                "cannot keep how far messages are numbered in %s: %s; if this machine's clock is set back "
                "before it can, what it says after a restart is refused as old",
                self._path,
                e,
            )


def _on_disk(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _open(path)
    except sqlite3.DatabaseError as e:
        if isinstance(e, sqlite3.OperationalError):
            raise
        _set_aside(path, e)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _set_aside(path: Path, why: Exception) -> None:
    """A card that lost its bits must not keep a node out for ever: begin anew, and say so."""
    log.warning("%s is torn (%s): set aside; old messages could be taken once more now", path, why)
    path.replace(path.with_name(f"{path.name}.torn"))
    for left in ("-wal", "-shm"):
        path.with_name(path.name + left).unlink(missing_ok=True)
