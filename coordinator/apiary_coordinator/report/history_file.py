"""`history.jsonl`: the record of a run, a line when it begins, for each round, and when it ends.

What a line holds is its key `kind`: `run` (settings, labels, the untrained model), `round`, `end` (the best
round, why it stopped). Lines are appended, so a round costs what it holds, however many came before. The
journal has all of it: after a restart the file is made to say what the journal does, so a torn last line
costs nothing.
"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from apiary.errors import DataError
from apiary.files import disk_errors, write_all, write_atomic

NAME: Final = "history.jsonl"


class HistoryFile:
    """The file of one run's folder, written by one process."""

    def __init__(self, folder: Path):
        self._path = folder / NAME

    def hold(self, lines: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Have the file hold these lines and nothing else; what is there of them stays. Raises StoreError.

        `lines` is called once or twice; one line at a time is in memory.
        """
        there = self._agreeing(lines())
        if there is None:
            write_atomic(self._path, map(_line, lines()))
        else:
            self._append(map(_line, islice(lines(), there, None)))

    def _agreeing(self, lines: Iterable[dict[str, Any]]) -> int | None:
        """How many of the lines are all that the file holds; None where it holds others, or nothing."""
        count = 0
        with (
            disk_errors(f"cannot read {self._path}"),
            suppress(FileNotFoundError),
            self._path.open("rb") as f,
        ):
            for line in map(_line, lines):
                found = f.read(len(line))
                if found != line:
                    return None if found or count == 0 else count
                count += 1
            return None if f.read(1) else count
        return None

    def add(self, line: dict[str, Any]) -> None:
        """One more line, synced: the whole of it or nothing. Raises StoreError."""
        self._append([_line(line)])

    def _append(self, lines: Iterable[bytes]) -> None:
        # Unbuffered: what could not be written must not be written later, when the file is closed.
        with disk_errors(f"cannot write {self._path}"), self._path.open("r+b", buffering=0) as f:
            end = at = f.seek(0, os.SEEK_END)
            try:
                for line in lines:
                    write_all(f.fileno(), line, at)
                    at += len(line)
                os.fsync(f.fileno())
            except OSError:
                f.truncate(end)  # it is written again from its beginning
                raise


def read_history(folder: Path) -> dict[str, Any]:
    """A run's record as one object; what nobody finished writing is left out. Raises DataError.

    Keys: run, created, settings, labels, initial, rounds (oldest first), nodes (what each reported of itself
    last), best_round and stop (None while it goes on). Of the rounds' `shares` there is what `nodes` has, of
    `node_metrics` the last of each node: all of them would be most of the memory.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {NAME}: expected the folder of a run") from None
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror}") from None
    record: dict[str, Any] = {"rounds": [], "nodes": {}, "best_round": None, "stop": None}
    measured: dict[str, dict[str, Any]] = {}
    # What follows the last line's end was being written when power went, or is being written now.
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        try:
            line = json.loads(raw)
            kind = line.pop("kind")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            why = "no key 'kind'" if isinstance(e, KeyError) else str(e)[:80]
            raise DataError(f"{path} cannot be read: line {number}: {why}") from None
        _fold(record, measured, kind, line)
    if "run" not in record:
        raise DataError(f"{path} cannot be read: its first line is not that of a run")
    record["nodes"] = dict(sorted(record["nodes"].items()))
    return record


def _fold(
    record: dict[str, Any], measured: dict[str, dict[str, Any]], kind: object, line: dict[str, Any]
) -> None:
    """`measured` has the round's metrics that hold a node's last."""
    if kind == "round":
        record["best_round"] = line.pop("best_round", None)
        record["rounds"].append(line)
        shares, metrics = line.pop("shares", None), line.get("node_metrics")
        record["nodes"].update(shares if isinstance(shares, dict) else {})
        if isinstance(metrics, dict):
            for node in metrics:
                measured.get(node, {}).pop(node, None)
                measured[node] = metrics
    elif kind in ("run", "end"):
        record.update(line)


def _line(value: dict[str, Any]) -> bytes:
    # Without indentation the encoder is the fast one; after every round this is the loop's time.
    return json.dumps(value).encode() + b"\n"
