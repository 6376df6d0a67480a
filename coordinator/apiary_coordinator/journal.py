"""The journal: what must survive `kill -9` and power cuts, in SQLite with a full sync at each commit.

A row is committed before any message that reports it: the cohort before the announcement, an update before
its receipt, a model before the round is closed. What is not in the journal did not happen.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from apiary.errors import StoreError
from apiary.files import is_full
from apiary.folder_lock import hold_folder
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Contributor, Offer

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    id TEXT PRIMARY KEY, created REAL NOT NULL, settings TEXT NOT NULL, artefacts TEXT,
    state TEXT NOT NULL DEFAULT 'active', stop TEXT);
CREATE TABLE IF NOT EXISTS round (
    run TEXT NOT NULL, number INTEGER NOT NULL, opened TEXT NOT NULL,
    result TEXT, model TEXT, state_digest TEXT,
    PRIMARY KEY (run, number));
CREATE TABLE IF NOT EXISTS accepted (
    run TEXT NOT NULL, round INTEGER NOT NULL, node TEXT NOT NULL,
    digest TEXT NOT NULL, slot INTEGER NOT NULL, bytes INTEGER NOT NULL,
    samples INTEGER NOT NULL, seconds REAL NOT NULL, offer TEXT NOT NULL,
    PRIMARY KEY (run, round, node));
CREATE TABLE IF NOT EXISTS rejected (
    run TEXT NOT NULL, round INTEGER NOT NULL, node TEXT NOT NULL, why TEXT NOT NULL,
    PRIMARY KEY (run, round, node));
CREATE TABLE IF NOT EXISTS request (
    at INTEGER PRIMARY KEY AUTOINCREMENT, operator TEXT NOT NULL, id TEXT NOT NULL, answer TEXT,
    UNIQUE (operator, id));
CREATE TABLE IF NOT EXISTS remembered (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

MAX_REQUESTS: Final = 256
"""Of one operator, the newest; where messages are signed, only the very newest can come again at all."""
_MAX_REQUESTS_OF_ALL: Final = 10_000
BULKY: Final = (
    "contributors",
    "rejected",
    "missing",
    "left_out",
    "shares",
    "node_metrics",
    "per_class",
    "confusion",
)
"""Of a round's result what grows with the fleet: 1.2 MB in memory for 1000 nodes (measured), each round."""
_FULL: Final = "the disk is full: free some space, nothing that was journaled is lost"
_DAMAGED: Final = "restore it from a backup, or begin anew with another coordinator.state_dir"
_SLIM: Final = "json_remove(result, {})".format(", ".join(f"'$.{key}'" for key in BULKY))


@dataclass(frozen=True, slots=True)
class AcceptedRow:
    """One accepted update: its node, where it lies in the spool, and the offer it came with.

    `samples` is what it weighs; the offer says what it trained on.
    """

    node: NodeId
    digest: Digest
    slot: int
    bytes: int
    samples: int
    seconds: float
    offer: Offer

    @property
    def contributor(self) -> Contributor:
        """What the round keeps of it."""
        trained = self.offer.samples if self.offer.samples != self.samples else None
        return Contributor(
            samples=self.samples, trained=trained, bytes=self.bytes, seconds=round(self.seconds, 3)
        )


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as journaled; `settings` and `exported` are JSON."""

    id: str
    created: float
    settings: str
    exported: str | None
    state: str
    stop: str | None


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round as journaled: `opened` is what was decided at its opening, `result` None while it is open.

    `opened` is empty once it is over, and `result` has none of what is `BULKY`: `results` has.
    """

    number: int
    opened: dict[str, Any]
    result: dict[str, Any] | None
    model: Digest | None
    state: Digest | None


class Journal:
    """Owns the state folder: a second coordinator on the same folder is refused.

    Without `sync` a power cut may take it: for what need not outlive its process.
    """

    def __init__(self, folder: Path, *, sync: bool = True):
        self._held = ExitStack()
        self._held.enter_context(
            hold_folder(folder, "coordinator", "stop it, or set another coordinator.state_dir")
        )
        try:
            self._db = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if sync else 'OFF'}")
            self._db.executescript(_SCHEMA)
            broken = self._db.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.Error as e:
            self._held.close()
            raise StoreError(
                f"the journal in {folder} cannot be opened: {e}; {_FULL if is_full(folder) else _DAMAGED}"
            ) from e
        if broken != "ok":
            self.close()
            raise StoreError(f"the journal in {folder} is damaged ({broken}); restore it from a backup")

    def close(self) -> None:
        """Close the journal and free the folder."""
        self._db.close()
        self._held.close()

    def open_run(self, run: str, created: float, settings: str) -> RunRow:
        """Begin a run."""
        self.commit(("INSERT INTO run (id, created, settings) VALUES (?, ?, ?)", (run, created, settings)))
        return RunRow(run, created, settings, None, "active", None)

    def set_exported(self, run: str, exported: str) -> None:
        """Note the digests of what the run trains."""
        self.commit(("UPDATE run SET artefacts = ? WHERE id = ?", (exported, run)))

    def request_stop(self, run: str, why: str) -> None:
        """The run is to come to its end; it stays active until it has."""
        self.commit(("UPDATE run SET stop = ? WHERE id = ?", (why, run)))

    def end_run(self, run: str, state: str, stop: str) -> None:
        """The run is over: `finished`, `stopped`, `failed` or `abandoned`."""
        self.commit(("UPDATE run SET state = ?, stop = ? WHERE id = ?", (state, stop, run)))

    def note_request(self, operator: NodeId, id_: str) -> None:
        """An operator's request is about to be carried out. Raises StoreError: it must not be then."""
        of_one = "SELECT at FROM request WHERE operator = ? ORDER BY at DESC LIMIT ?"
        self.commit(
            ("INSERT INTO request (operator, id) VALUES (?, ?)", (operator, id_)),
            (
                f"DELETE FROM request WHERE operator = ? AND at NOT IN ({of_one})",  # noqa: S608 - fixed words
                (operator, operator, MAX_REQUESTS),
            ),
            ("DELETE FROM request WHERE at <= (SELECT max(at) FROM request) - ?", (_MAX_REQUESTS_OF_ALL,)),
        )

    def answer_request(self, operator: NodeId, id_: str, answer: str) -> None:
        """The last answer to a request, for one that comes again after a restart."""
        self.commit(("UPDATE request SET answer = ? WHERE operator = ? AND id = ?", (answer, operator, id_)))

    def request(self, operator: NodeId, id_: str) -> tuple[bool, str | None]:
        """Whether this request came before, and its last answer, if it had one."""
        rows = list(self.select("SELECT answer FROM request WHERE operator = ? AND id = ?", (operator, id_)))
        return (True, rows[0][0]) if rows else (False, None)

    def active_run(self) -> RunRow | None:
        """The newest run that is not over."""
        return next(iter(self.runs("state = 'active' ORDER BY created DESC LIMIT 1")), None)

    def run(self, run: str) -> RunRow | None:
        """A run by its id."""
        return next(iter(self.runs("id = ?", run)), None)

    def runs(self, which: str, *values: Any) -> list[RunRow]:
        """The runs that fit a condition, `which` in SQL."""
        query = f"SELECT id, created, settings, artefacts, state, stop FROM run WHERE {which}"  # noqa: S608 - fixed words
        return [RunRow(*row) for row in self.select(query, values)]

    def open_round(self, run: str, number: int, opened: dict[str, Any]) -> None:
        """Write down a round's cohort, plan and model, or its cohort once more after an invitation."""
        upsert = (
            "INSERT INTO round (run, number, opened) VALUES (?, ?, ?)"
            " ON CONFLICT (run, number) DO UPDATE SET opened = excluded.opened"
        )
        self.commit((upsert, (run, number, json.dumps(opened))))

    def accept(self, run: str, number: int, rows: Iterable[AcceptedRow]) -> list[AcceptedRow]:
        """Write down accepted updates in one commit; those that were. Raises StoreError: then none was.

        A row that breaks a constraint, as a node's second update of one round does, is left out: it must not
        hold up the rows beside it.
        """
        insert = "INSERT INTO accepted VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        written: list[AcceptedRow] = []
        with self._transaction():
            for row in rows:
                # Python's sqlite3 undoes the statement alone, and the transaction goes on.
                with suppress(sqlite3.IntegrityError):
                    self._db.execute(insert, (run, number, *astuple(row)[:-1], row.offer.model_dump_json()))
                    written.append(row)
        return written

    def forget(self, run: str, number: int, node: NodeId) -> None:
        """Strike out an accepted update whose bytes are damaged, so that the node may send it again."""
        delete = "DELETE FROM accepted WHERE run = ? AND round = ? AND node = ?"
        self.commit((delete, (run, number, node)))

    def reject(self, run: str, number: int, node: NodeId, why: str) -> None:
        """Write down a refused update."""
        self.commit(("INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)", (run, number, node, why)))

    def close_round(
        self, run: str, number: int, result: dict[str, Any], model: Digest, state: Digest | None
    ) -> None:
        """Write down a round's result and the model that the next one starts from."""
        update = (
            "UPDATE round SET opened = '{}', result = ?, model = ?, state_digest = ?"
            " WHERE run = ? AND number = ?"
        )
        self.commit((update, (json.dumps(result), model, state, run, number)))

    def rounds(self, run: str) -> list[RoundRow]:
        """All rounds of a run, oldest first."""
        opened = "CASE WHEN result IS NULL THEN opened ELSE '{}' END"
        query = f"SELECT number, {opened}, {_SLIM}, model, state_digest FROM round"  # noqa: S608 - no values
        return [
            RoundRow(n, json.loads(o), json.loads(r) if r else None, m, s)
            for n, o, r, m, s in self.select(f"{query} WHERE run = ? ORDER BY number", (run,))
        ]

    def results(self, run: str) -> Iterator[dict[str, Any]]:
        """The results of a run's rounds as they were closed, oldest first, one in memory at a time."""
        query = "SELECT result FROM round WHERE run = ? AND result IS NOT NULL ORDER BY number"
        try:
            for (result,) in self._db.execute(query, (run,)):
                yield json.loads(result)
        except sqlite3.Error as e:
            raise StoreError(f"the journal cannot be read: {e}") from e

    def trim(self, run: str) -> None:
        """Of a run that is over keep what lists of runs and rounds show; `history.jsonl` has the rest."""
        self.commit(
            (f"UPDATE round SET opened = '{{}}', result = {_SLIM} WHERE run = ?", (run,)),  # noqa: S608 - fixed names
            ("DELETE FROM accepted WHERE run = ?", (run,)),
            ("DELETE FROM rejected WHERE run = ?", (run,)),
        )

    def accepted(self, run: str, number: int) -> list[AcceptedRow]:
        """Accepted updates of a round, in the order they came."""
        query = (
            "SELECT node, digest, slot, bytes, samples, seconds, offer FROM accepted"
            " WHERE run = ? AND round = ? ORDER BY rowid"
        )
        return [
            AcceptedRow(node, digest, slot, size, samples, seconds, Offer.model_validate_json(offer))
            for node, digest, slot, size, samples, seconds, offer in self.select(query, (run, number))
        ]

    def counted(self, run: str, number: int, node: NodeId) -> bool:
        """Whether an update of this node was accepted in this round."""
        query = "SELECT 1 FROM accepted WHERE run = ? AND round = ? AND node = ?"
        return bool(self.select(query, (run, number, node)))

    def rejected(self, run: str, number: int) -> dict[NodeId, str]:
        """Refused nodes of a round, and why."""
        query = "SELECT node, why FROM rejected WHERE run = ? AND round = ?"
        return {NodeId(node): str(why) for node, why in self.select(query, (run, number))}

    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name. Raises StoreError."""
        self.commit(("INSERT OR REPLACE INTO remembered VALUES (?, ?)", (name, json.dumps(value))))

    def recall(self, name: str) -> Any:
        """What was kept under a name, or None. Raises StoreError."""
        rows = self.select("SELECT value FROM remembered WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else None

    def select(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """What the journal holds. Raises StoreError."""
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as e:
            raise StoreError(f"the journal cannot be read: {e}") from e

    def commit(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        """All of these or none, on the disk when this returns. Raises StoreError."""
        with self._transaction():
            for sql, values in statements:
                self._db.execute(sql, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """What is executed within is committed as one, or not at all. Raises StoreError."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as e:
            raise StoreError(f"the journal refused a commit: {e}; free some disk space if it is full") from e
