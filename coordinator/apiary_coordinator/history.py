"""The record of a run for people and scripts: `history.jsonl`, a line a round; `summary.json` at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from apiary.errors import StoreError
from apiary.files import write_json
from apiary.settings import Settings, flatten
from apiary_coordinator import rules
from apiary_coordinator.history_file import HistoryFile
from apiary_coordinator.rules import Best

log = logging.getLogger(__name__)

_SHOWN = ("federation", "run.", "coordinator.labels", "coordinator.test_data")


class Record:
    """Everything that is told of a run; `rounds` are results as JSON, oldest first."""

    def __init__(self, run: str, created: float, settings: Settings):
        self.run = run
        self.rounds: list[dict[str, Any]] = []
        self.labels: tuple[str, ...] = ()
        self.initial: dict[str, Any] = {}
        self.stop: str | None = None
        """Why it is over, once it is."""
        self.told_to_stop: str | None = None
        self._created = created
        self._settings = settings
        self._file = HistoryFile(self.folder)
        self._behind = True

    @property
    def folder(self) -> Path:
        """Where the run's results go."""
        return self._settings.coordinator.runs_dir / self.run

    @property
    def best(self) -> Best | None:
        """The best round so far."""
        return rules.best_of(_closed(self.rounds))

    @property
    def next_number(self) -> int:
        """The number of the next round, from 1."""
        return self.rounds[-1]["round"] + 1 if self.rounds else 1

    @property
    def paces(self) -> list[list[float]]:
        """Seconds that each contributor took, of each round that had any."""
        return [[c["seconds"] for c in r["contributors"].values()] for r in self.rounds if r["contributors"]]

    def model_of(self, number: int) -> str:
        """Digest of the model that a closed round gave."""
        return str(next(r["model"] for r in self.rounds if r["round"] == number))

    def why_stop(self) -> str | None:
        """Why the run is over now, or None; remembered for what is written."""
        failed = 0
        for r in reversed(self.rounds):
            if r["state"] == "closed":
                break
            failed += 1
        self.stop = self.told_to_stop or rules.stop(self._settings.run, _closed(self.rounds), failed)
        return self.stop

    def begin(self) -> None:
        """Make the file say what the journal does, after a restart. Raises StoreError.

        A run has no folder before its first round is over.
        """
        if self.rounds:
            self._file.hold(self._lines())
            self._behind = False

    def add(self, entry: dict[str, Any]) -> None:
        """A round is over. Where the disk refuses its line, it is written with the next."""
        self.rounds.append(entry)
        try:
            if self._behind:
                self.begin()
            else:
                self._file.add(self._line(len(self.rounds) - 1))
        except StoreError as e:
            self._behind = True
            log.error("%s; the journal has it, it is written with the next round", e)

    def end(self) -> None:
        """Write that the run is over, and why. Raises StoreError."""
        best = self.best
        end = {"kind": "end", "best_round": best.round if best else None, "stop": self.stop}
        self._file.hold([*self._lines(), end])

    def _lines(self) -> list[dict[str, Any]]:
        start = {
            "kind": "run",
            "run": self.run,
            "created": self._created,
            "settings": {k: v for k, v in flatten(self._settings).items() if k.startswith(_SHOWN)},
            "labels": list(self.labels),
            "initial": self.initial,
        }
        return [start, *(self._line(i) for i in range(len(self.rounds)))]

    def _line(self, index: int) -> dict[str, Any]:
        best = rules.best_of(_closed(self.rounds[: index + 1]))
        return {"kind": "round", "best_round": best.round if best else None, **self.rounds[index]}

    def finish(self, model_sha256: str, seconds: float, extra: dict[str, Any]) -> dict[str, Any]:
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
            "nodes": len({name for r in self.rounds for name in r.get("shares", {})}),
            "contributors": {str(r["round"]): sorted(r["contributors"]) for r in good},
            "bytes_up": sum(r["bytes_up"] for r in self.rounds),
            "bytes_down": sum(r["bytes_down"] for r in self.rounds),
            "seconds": round(seconds, 3),
            "model_sha256": model_sha256,
            "stop": self.stop,
            **extra,
        }
        write_json(self.folder / "summary.json", summary)
        return summary


def _closed(rounds: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    return [(r["round"], r["accuracy"], r["loss"]) for r in rounds if r["state"] == "closed"]
