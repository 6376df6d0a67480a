"""The record of a run for people and scripts: `history.jsonl`, a line a round; `summary.json` at the end.

A round's result names every node of its cohort, so the results of all rounds are read from the journal where
they are written down, one at a time; in memory is what the run's rules ask about.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from apiary.errors import StoreError
from apiary.files import write_json
from apiary.settings import Settings, flatten
from apiary_coordinator.journal import BULKY
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.report.history_file import HistoryFile
from apiary_coordinator.round.deadline import LOOKED_AT
from apiary_coordinator.run import stopping
from apiary_coordinator.run.stopping import Best
from apiary_coordinator.updates.leave_one_out import LOOKED_BACK

log = logging.getLogger(__name__)

_SHOWN: Final = ("federation", "run.", "coordinator.labels", "coordinator.test_data")
Entry = dict[str, Any]


class RunHistory:
    """Everything that is known of a run. `results` gives its rounds' results from the journal, in full."""

    def __init__(self, run: str, created: float, settings: Settings, results: Callable[[], Iterator[Entry]]):
        self.run = run
        self.rounds: list[Entry] = []
        """Results as JSON, oldest first, without what grows with the fleet."""
        self.newest: Entry | None = None
        """The newest in full, once there is one since the start."""
        self.labels: tuple[str, ...] = ()
        self.initial: Entry = {}
        self.ancestor: Ancestor | None = None
        """The model that the run began with; None where it began from scratch."""
        self.stop: str | None = None
        """Why it is over, once it is."""
        self.stop_requested: str | None = None
        self.paces: deque[list[float]] = deque(maxlen=LOOKED_AT)
        """Seconds that each contributor took, of the last rounds that had any."""
        self._created = created
        self._settings = settings
        self._results = results
        self._nodes: set[str] = set()
        self.best: Best | None = None
        """The best round so far."""
        self._file = HistoryFile(self.folder)
        self._behind = True
        self._ended: Entry | None = None

    @property
    def folder(self) -> Path:
        """Where the run's results go."""
        return self._settings.coordinator.runs_dir / self.run

    @property
    def next_number(self) -> int:
        """The number of the next round, from 1."""
        return self.rounds[-1]["round"] + 1 if self.rounds else 1

    @property
    def closed(self) -> int:
        """How many rounds were closed."""
        return sum(r["state"] == "closed" for r in self.rounds)

    def model_of(self, number: int) -> str:
        """Digest of the model that a closed round gave."""
        return str(next(r["model"] for r in self.rounds if r["round"] == number))

    @property
    def last_norm(self) -> float | None:
        """The median norm of the last closed round's updates; None where none has one above 0."""
        return next((r["median_norm"] for r in reversed(self.rounds) if r.get("median_norm")), None)

    @property
    def loss_before(self) -> float | None:
        """The lowest held-out loss of the last closed rounds; before the first, the untrained model's."""
        closed = [r["loss"] for r in self.rounds if r["state"] == "closed"]
        return min(closed[-LOOKED_BACK:], default=self.initial.get("loss"))

    def why_stop(self) -> str | None:
        """Why the run is over now, or None; remembered for what is written."""
        failed = 0
        for r in reversed(self.rounds):
            if r["state"] == "closed":
                break
            failed += 1
        self.stop = self.stop_requested or stopping.stop(self._settings.run, _closed(self.rounds), failed)
        return self.stop

    def resume(self) -> None:
        """Read what the journal has of the run, in place of what was known. Raises StoreError."""
        self.rounds, self.best, self._nodes = [], None, set()
        self.paces.clear()
        for entry in self._results():
            self._note(entry)

    def begin(self) -> None:
        """Make the file say what the journal does, after a restart. Raises StoreError.

        A run has no folder before its first round is over.
        """
        if self.rounds:
            self._file.hold(self._lines)
            self._behind = False

    def add(self, entry: Entry) -> None:
        """A round is over, and journaled. Where the disk refuses its line, it is written with the next."""
        self._note(entry)
        self.newest = entry
        try:
            if self._behind:
                self.begin()
            else:
                self._file.add(_line(entry, self.best))
        except StoreError as e:
            self._behind = True
            log.error("%s; the journal has it, it is written with the next round", e)

    def end(self) -> None:
        """Write that the run is over, and why. Raises StoreError."""
        best = self.best
        end = {"kind": "end", "best_round": best.round if best else None, "stop": self.stop}
        if self._behind or self._ended not in (None, end):
            self._file.hold(lambda: chain(self._lines(), [end]))
            self._behind = False
        elif self._ended is None:
            self._file.add(end)
        self._ended = end

    def finish(self, model_sha256: str, seconds: float, extra: Entry) -> Entry:
        """Write both files and return the summary; `model_sha256` names the best round's weights.

        Raises StoreError; it may be called again.
        """
        self.end()
        best = self.best
        good = [r for r in self.rounds if r["state"] == "closed"]
        summary = {
            "run": self.run,
            "best_accuracy": best.accuracy if best else None,
            "best_loss": best.loss if best else None,
            "best_round": best.round if best else None,
            "rounds_closed": len(good),
            "rounds_failed": len(self.rounds) - len(good),
            "nodes": len(self._nodes),
            "contributors": {
                str(r["round"]): sorted(r["contributors"]) for r in self._results() if r["state"] == "closed"
            },
            "bytes_up": sum(r["bytes_up"] for r in self.rounds),
            "bytes_down": sum(r["bytes_down"] for r in self.rounds),
            "seconds": round(seconds, 3),
            "model_sha256": model_sha256,
            "stop": self.stop,
            **self._began_with(),
            **extra,
        }
        write_json(self.folder / "summary.json", summary)
        return summary

    def _began_with(self) -> Entry:
        return {"ancestor": self.ancestor.model_dump(mode="json")} if self.ancestor is not None else {}

    def _note(self, entry: Entry) -> None:
        self.rounds.append({key: value for key, value in entry.items() if key not in BULKY})
        self.best = _better(self.best, entry)
        self._nodes.update(entry.get("shares", {}))
        if entry.get("contributors"):
            self.paces.append([c["seconds"] for c in entry["contributors"].values()])

    def _lines(self) -> Iterator[Entry]:
        yield {
            "kind": "run",
            "run": self.run,
            "created": self._created,
            "settings": {k: v for k, v in flatten(self._settings).items() if k.startswith(_SHOWN)},
            "labels": list(self.labels),
            "initial": self.initial,
            **self._began_with(),
        }
        best: Best | None = None
        for entry in self._results():
            best = _better(best, entry)
            yield _line(entry, best)


def _line(entry: Entry, best: Best | None) -> Entry:
    return {"kind": "round", "best_round": best.round if best else None, **entry}


def _better(best: Best | None, entry: Entry) -> Best | None:
    """The better of the best so far and this round."""
    closed = [] if best is None else [(best.round, best.accuracy, best.loss)]
    return stopping.best_of(closed + _closed([entry]))


def _closed(rounds: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    return [(r["round"], r["accuracy"], r["loss"]) for r in rounds if r["state"] == "closed"]
