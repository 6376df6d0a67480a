"""Runs as the journal knows them: requested, waiting, under way, over; and what the schedule remembers."""

import json
from dataclasses import dataclass
from typing import Any, Final

from apiary.errors import RequestRefused
from apiary.wire import Digest
from apiary_coordinator.journal import Journal, RunRow

MAX_WAITING: Final = 20
"""Runs that wait for the one before; a run is hours of a fleet's work."""
MAX_LISTED: Final = 100
MAX_SHOWN_ROUNDS: Final = 200

# Beside the tables of the journal, which older versions made.
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS occasion"
    " (run TEXT PRIMARY KEY, why TEXT NOT NULL, request TEXT UNIQUE, ended REAL)"
)
_LISTED: Final = (
    "SELECT run.id, run.created, run.state, run.stop, occasion.why, occasion.ended,"
    " (SELECT count(*) FROM round WHERE round.run = run.id AND result IS NOT NULL),"
    " (SELECT max(json_extract(result, '$.accuracy')) FROM round WHERE round.run = run.id)"
    " FROM run LEFT JOIN occasion ON occasion.run = run.id"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """One run in a list. Times are seconds since 1970; `created` is when it began, or was requested."""

    run: str
    created: float
    state: str
    stop: str | None
    why: str | None
    ended: float | None
    rounds: int
    accuracy: float | None


class RunBook:
    """Reads and writes runs; what waits is in the order of its requests."""

    def __init__(self, journal: Journal):
        self._journal = journal

    def open(self) -> None:
        """Make the table. Raises StoreError."""
        self._journal.commit((_SCHEMA, ()))

    def request(self, run: str, now: float, settings: str, *, why: str, request: str | None) -> None:
        """Put a run at the end of the queue. Raises RequestRefused where it is full or the name is taken."""
        if len(self.waiting()) >= MAX_WAITING:
            raise RequestRefused(f"{MAX_WAITING} runs are waiting; stop one of them first")
        if not self.frees(run):
            raise RequestRefused(f"there is a run {run!r} already: give another name")
        insert = "INSERT INTO run (id, created, settings, state) VALUES (?, ?, ?, 'waiting')"
        occasion = "INSERT INTO occasion (run, why, request) VALUES (?, ?, ?)"
        self._journal.commit((insert, (run, now, settings)), (occasion, (run, why, request)))

    def frees(self, run: str) -> bool:
        """Whether a new run may have this name. One that failed before its first round is forgotten for it.

        Raises StoreError.
        """
        before = self._journal.run(run)
        if before is None:
            return True
        if before.state not in ("failed", "abandoned", "withdrawn") or self._journal.rounds(run):
            return False
        self.strike(run)
        return True

    def requested_by(self, request: str) -> str | None:
        """The run of this request, from before a restart perhaps."""
        rows = self._journal.select("SELECT run FROM occasion WHERE request = ?", (request,))
        return str(rows[0][0]) if rows else None

    def waiting(self) -> list[RunRow]:
        """Runs that wait, the next one first."""
        return self._journal.runs("state = 'waiting' ORDER BY rowid")

    def begin(self, run: str, now: float) -> None:
        """It is under way from now on."""
        self._journal.commit(("UPDATE run SET state = 'active', created = ? WHERE id = ?", (now, run)))

    def ended(self, run: str, now: float) -> None:
        """Note when a run was over."""
        upsert = (
            "INSERT INTO occasion (run, why, ended) VALUES (?, '', ?)"
            " ON CONFLICT (run) DO UPDATE SET ended = excluded.ended"
        )
        self._journal.commit((upsert, (run, now)))

    def withdraw(self, run: str, why: str, now: float) -> None:
        """Take a waiting run out of the queue."""
        self._journal.end_run(run, "withdrawn", why)
        self.ended(run, now)

    def begun(self, limit: int) -> list[Listed]:
        """The newest runs that are not waiting any more, newest first."""
        # By row, not by time: runs begin in the order of their requests, whatever the clock does.
        query = f"{_LISTED} WHERE run.state NOT IN ('waiting', 'withdrawn') ORDER BY run.rowid DESC LIMIT ?"
        return [Listed(*row) for row in self._journal.select(query, (limit,))]

    def last(self) -> tuple[float, float | None] | None:
        """When the newest run began that is not waiting, and when it was over; None where there was none."""
        query = (
            "SELECT run.created, occasion.ended FROM run LEFT JOIN occasion ON occasion.run = run.id"
            " WHERE run.state NOT IN ('waiting', 'withdrawn') ORDER BY run.rowid DESC LIMIT 1"
        )
        found = self._journal.select(query)
        return (found[0][0], found[0][1]) if found else None

    def bulky(self, keep: int) -> list[str]:
        """Runs that are over and still have all that grows with the fleet; not the `keep` newest."""
        query = (
            "SELECT id FROM run WHERE state NOT IN ('waiting', 'withdrawn', 'active') AND id NOT IN"
            " (SELECT id FROM run WHERE state NOT IN ('waiting', 'withdrawn') ORDER BY rowid DESC LIMIT ?)"
            " AND EXISTS (SELECT 1 FROM accepted WHERE accepted.run = run.id) ORDER BY rowid"
        )
        return [str(row[0]) for row in self._journal.select(query, (keep,))]

    def old(self, keep: int) -> list[str]:
        """Runs that are over, oldest first: not the `keep` newest with a model, nor the `keep` without one.

        Apart, so that a night of runs that fail takes no good one with it.
        """
        found: list[str] = []
        for states in ("('finished', 'stopped')", "('failed', 'withdrawn', 'abandoned')"):
            query = f"SELECT id FROM run WHERE state IN {states} ORDER BY rowid DESC"  # noqa: S608 - fixed words
            found += [str(row[0]) for row in reversed(self._journal.select(query)[keep:])]
        return found

    def strike(self, run: str) -> None:
        """Forget a run that is over."""
        tables = ("accepted", "rejected", "round", "occasion")
        self._journal.commit(
            *((f"DELETE FROM {table} WHERE run = ?", (run,)) for table in tables),  # noqa: S608 - fixed names
            ("DELETE FROM run WHERE id = ?", (run,)),
        )

    def listed(self, limit: int) -> list[Listed]:
        """The newest runs, newest first."""
        query = f"{_LISTED} ORDER BY run.rowid DESC LIMIT ?"
        return [Listed(*row) for row in self._journal.select(query, (min(limit, MAX_LISTED),))]

    def blobs(self, run: str) -> set[Digest]:
        """Every blob that a run trains, or made."""
        query = " UNION ".join(
            f"SELECT {what} FROM round WHERE run = ?1"  # noqa: S608 - fixed names
            for what in ("model", "state_digest", "json_extract(result, '$.sends_next')")
        )
        found = {Digest(row[0]) for row in self._journal.select(query, (run,)) if row[0]}
        exported = self._journal.select("SELECT artefacts FROM run WHERE id = ?", (run,))
        for ref in json.loads(exported[0][0] or "{}").values() if exported else ():
            if isinstance(ref, dict) and "digest" in ref:
                found.add(Digest(ref["digest"]))
        return found

    def one(self, run: str) -> Listed | None:
        """One of them."""
        rows = self._journal.select(f"{_LISTED} WHERE run.id = ?", (run,))
        return Listed(*rows[0]) if rows else None

    def rounds(self, run: str) -> list[dict[str, Any]]:
        """A run's newest rounds, oldest first, without who contributed what."""
        counts = ("contributors", "rejected", "missing")
        fields = ("state", "accuracy", "loss", "bytes_up", "bytes_down", "seconds", "why")
        found = (*fields, *(f"n_{count}" for count in counts))
        columns = ", ".join(f"json_extract(result, '$.{field}')" for field in found)
        query = (
            f"SELECT number, {columns} FROM round WHERE run = ?"  # noqa: S608 - fixed names
            " AND result IS NOT NULL ORDER BY number DESC LIMIT ?"
        )
        names = ("round", *fields, *counts)
        rows = self._journal.select(query, (run, MAX_SHOWN_ROUNDS))
        return [dict(zip(names, row, strict=True)) for row in reversed(rows)]
