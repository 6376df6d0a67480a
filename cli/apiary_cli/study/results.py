"""What the runs of a study gave: a line each in `results.jsonl`, means and paired differences."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary.files import disk_errors
from apiary_cli.study.plan import Axes, StudyPlan
from apiary_coordinator.report.tables import ReportRun

RESULTS: Final = "results.jsonl"
Accuracy = Annotated[float, Field(ge=0, le=1)]


class RunResult(BaseModel):
    """One run's figures. `curve` is accuracy by closed round, 0 for the model before the first.

    `last` is the mean accuracy of the last `tail` rounds that were evaluated. A run that failed has `error`.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    axes: tuple[tuple[str, str], ...]
    seed: int
    curve: tuple[tuple[int, Accuracy], ...] = ()
    best: Accuracy | None = None
    best_round: int | None = None
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0
    folder: str | None = None
    version: str | None = None
    error: str | None = None

    def last(self, tail: int) -> float | None:
        """Mean accuracy of the last `tail` evaluated rounds; None without any."""
        rounds = [accuracy for number, accuracy in self.curve if number > 0]
        return fmean(rounds[-tail:]) if rounds else None


def result_of(record: ReportRun, *, key: str, axes: Axes, seed: int, virtual_s: float, real_s: float,
              folder: str, version: str) -> RunResult:  # fmt: skip
    """The figures of a finished run."""
    closed = [r for r in record.rounds if r.state == "closed"]
    start = [] if record.initial.accuracy is None else [(0, record.initial.accuracy)]
    curve = start + [(r.round, r.accuracy) for r in closed if r.accuracy is not None]
    best = record.best
    return RunResult(
        id=key, axes=axes, seed=seed, curve=tuple(curve), rounds=len(closed),
        best=best.accuracy if best else None, best_round=record.best_round,
        bytes_up=sum(r.bytes_up for r in record.rounds), bytes_down=sum(r.bytes_down for r in record.rounds),
        virtual_s=virtual_s, real_s=real_s, folder=folder, version=version,
    )  # fmt: skip


class ResultsFile:
    """`results.jsonl`: lines are appended and synced; of two with one id the newer counts."""

    def __init__(self, folder: Path):
        self._path = folder / RESULTS

    def read(self) -> dict[str, RunResult]:
        """By id, without a line that a power cut tore. Raises StoreError."""
        found: dict[str, RunResult] = {}
        if not self._path.exists():
            return found
        with disk_errors(f"cannot read {self._path}"):
            lines = self._path.read_bytes().splitlines()
        for line in lines:
            try:
                row = RunResult.model_validate(json.loads(line))
            except (ValueError, RecursionError, ValidationError):
                continue
            found[row.id] = row
        return found

    def add(self, row: RunResult) -> None:
        """One more line, on its own even behind a torn one. Raises StoreError."""
        with disk_errors(f"cannot write {self._path}"), self._path.open("ab") as f:
            torn = f.tell() > 0 and not self._path.read_bytes().endswith(b"\n")
            f.write((b"\n" if torn else b"") + row.model_dump_json(exclude_none=True).encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds, and half of its 95 % interval by Student's t; None from one seed."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Point:
    """All seeds of one point of the grid. `gain` is over the baseline, paired by seed."""

    axes: Axes
    results: tuple[RunResult, ...]
    failed: int
    last: Estimate | None
    best: Estimate | None
    gain: Estimate | None
    is_baseline: bool

    @property
    def bytes_up(self) -> float | None:
        """Bytes from all nodes, mean over seeds."""
        return fmean(row.bytes_up for row in self.results) if self.results else None

    @property
    def virtual_s(self) -> float | None:
        """Virtual seconds, mean over seeds."""
        return fmean(row.virtual_s for row in self.results) if self.results else None


def points_of(plan: StudyPlan, results: Iterable[RunResult]) -> list[Point]:
    """Every point of the grid that has a result, in the file's order."""
    tail = plan.file.tail
    by_axes: dict[Axes, list[RunResult]] = {}
    for row in results:
        by_axes.setdefault(row.axes, []).append(row)
    points = []
    for axes in dict.fromkeys(cell.axes for cell in plan.cells):
        rows = by_axes.get(axes, [])
        good = sorted((row for row in rows if row.error is None), key=lambda row: row.seed)
        base = plan.baseline_of(axes)
        with_baseline = bool(plan.file.baseline)
        against = {row.seed: row.last(tail) for row in by_axes.get(base, []) if row.error is None}
        pairs = [
            (mine, other)
            for row in good
            if (mine := row.last(tail)) is not None and (other := against.get(row.seed)) is not None
        ]
        points.append(
            Point(
                axes,
                tuple(good),
                sum(row.error is not None for row in rows),
                estimate([value for row in good if (value := row.last(tail)) is not None]),
                estimate([row.best for row in good if row.best is not None]),
                estimate([a - b for a, b in pairs]) if with_baseline and base != axes else None,
                with_baseline and base == axes,
            )
        )
    return points


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, and half of its 95 % interval. None without values.

    Example: `estimate([.50, .52, .54])` is .52 with half .050 (t with 2 degrees of freedom is 4.303).
    """
    n = len(values)
    if n == 0:
        return None
    half = _T_95[min(n - 2, len(_T_95) - 1)] * stdev(values) / math.sqrt(n) if n > 1 else None
    return Estimate(fmean(values), half, n)


_T_95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    1.960,
)  # fmt: skip
"""Student's t, two-sided 95 %, by degrees of freedom from 1; the last for all above 30."""
