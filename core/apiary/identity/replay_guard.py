"""On disk: the newest message of each signer on each topic, and a counter that never goes back.

The counter survives a power cut at any instant, and a clock that is set back by less than a day; a clock
that was further ahead once and is right now binds nobody. Marks survive a kill at any instant; a power cut
may take those of the last seconds back, so that a node writes its card less.
"""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from apiary.errors import StoreError
from apiary.identity.signing import MAX_AHEAD

MAX_MARKS: Final = 100_000
"""Signers times topics, about 20 MB; beyond, the oldest is forgotten, which only its signer could use."""
AHEAD_MS: Final = 60_000
"""The counter is written down for a minute ahead: one small write a minute at most, not one a message."""
RETRY_MS: Final = 5_000
"""A counter that the disk did not take is written again after this."""
_AHEAD_MS: Final = int(MAX_AHEAD.total_seconds() * 1000)
_MAX_CEILINGS: Final = 8
log = logging.getLogger(__name__)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS mark
    (signer TEXT, topic TEXT, issued INTEGER NOT NULL, PRIMARY KEY (signer, topic)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS mark_by_age ON mark (issued);
CREATE TABLE IF NOT EXISTS certified
    (signer TEXT, topic TEXT, key TEXT NOT NULL, since INTEGER NOT NULL, PRIMARY KEY (signer, topic))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (ceiling INTEGER NOT NULL);
"""
# `certified` is apart from `mark` because the version before writes that by position.
_FIND: Final = """
SELECT issued, coalesce(key, ''), coalesce(since, 0) FROM mark LEFT JOIN certified USING (signer, topic)
WHERE signer = ? AND topic = ?
"""
_TRIM_COUNTER: Final = f"""
DELETE FROM counter WHERE ceiling NOT IN (SELECT ceiling FROM counter ORDER BY ceiling LIMIT {_MAX_CEILINGS})
"""  # noqa: S608 - a number of our own


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
            self._before = [int(row[0]) for row in self._db.execute("SELECT ceiling FROM counter")]
            self._last, self._ceiling = -1, 0
            (self._count,) = self._db.execute("SELECT count(*) FROM mark").fetchone()
        except (OSError, sqlite3.Error) as e:
            raise StoreError(f"cannot keep what was signed in {path}: {e}") from None

    def admit(self, signer: str, topic: str, issued: int, *, key: str = "", since: int = 0) -> int:
        """Remember `issued` if it is the newest of what counts; returns the newest before (0: none)."""
        try:
            row = self._db.execute(_FIND, (signer, topic)).fetchone()
            newest, known, certified = (int(row[0]), str(row[1]), int(row[2])) if row else (0, "", 0)
            # A key with a later certificate begins anew, as does who was believed while a clock was wrong.
            if (key != known and known and since > certified) or newest > self._now_ms() + _AHEAD_MS:
                newest = 0
            if issued > newest:
                self._write_mark(
                    signer, topic, issued, (key, since) if (key, since) != (known, certified) else None
                )
                self._count += row is None
                if self._count > self._max:
                    self._forget_oldest()
        except sqlite3.Error as e:
            raise StoreError(f"cannot keep what was signed in {self._path}: {e}") from None
        return newest

    def issue(self) -> int:
        """The clock in milliseconds since 1970, or one more than the last number where that is larger.

        A last number that is more than a day ahead of the clock counts no more: it is refused everywhere, so
        the clock was wrong then, or is now. Raises nothing: what is sealed is often the last step of
        something that is written down already.
        """
        now = self._now_ms()
        believed = [n for n in (*self._before, self._last) if n <= now + _AHEAD_MS]
        self._last = max(now, max(believed, default=-1) + 1)
        if self._last >= max(self._ceiling, self._write_at) or self._ceiling > self._last + _AHEAD_MS:
            self._write_ceiling(self._last + AHEAD_MS)
        return self._last

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _now_ms(self) -> int:
        return int(self._wall() * 1000)

    def _write_mark(self, signer: str, topic: str, issued: int, certified: tuple[str, int] | None) -> None:
        if certified is None:
            self._db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", (signer, topic, issued))
            return
        with self._db:
            self._db.execute("BEGIN")
            self._db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", (signer, topic, issued))
            self._db.execute(
                "INSERT OR REPLACE INTO certified VALUES (?, ?, ?, ?)", (signer, topic, *certified)
            )

    def _forget_oldest(self) -> None:
        oldest = self._db.execute("SELECT signer, topic FROM mark ORDER BY issued LIMIT 1").fetchone()
        for table in ("mark", "certified"):
            self._db.execute(f"DELETE FROM {table} WHERE signer = ? AND topic = ?", oldest)  # noqa: S608
        self._count -= 1

    def _write_ceiling(self, ceiling: int) -> None:
        """Where the disk refuses, messages leave all the same: only a clock set back could make them old."""
        try:
            # A Pi wakes from a power cut with the clock of yesterday: this must have reached the disk.
            self._db.execute("PRAGMA synchronous=FULL")
            try:
                with self._db:
                    self._db.execute("BEGIN")
                    # Larger ones stay: this clock may be dead, and those may count again once it is set.
                    self._db.execute("DELETE FROM counter WHERE ceiling <= ?", (ceiling,))
                    self._db.execute("INSERT INTO counter VALUES (?)", (ceiling,))
                    self._db.execute(_TRIM_COUNTER)
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
    # What lies beside it as -wal and -shm, SQLite removes itself: they are not those of an empty file.
    path.replace(path.with_name(f"{path.name}.torn"))
