"""What `history.jsonl` and `summary.json` say, checked, and as rows for the page and the spreadsheet."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary.errors import DataError
from apiary.files import sha256_of
from apiary_coordinator.report.history_file import NAME, read_history

MAX_CHAIN: Final = 30
"""Runs before this one that a plot shows."""
COLUMNS = (
    "round", "state", "accuracy", "loss", "node_accuracy", "contributors", "samples", "rejected", "missing",
    "left_out", "bytes_up", "bytes_down", "seconds", "model", "why",
)  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Share(_Part):
    """One node's part in a round."""

    samples: int = 0
    bytes: int = 0
    seconds: float = 0.0


class NodeMetrics(_Part):
    """What a node measured on the pictures that it holds back, after its training and before."""

    accuracy: float | None = None
    accuracy_before: float | None = None


class ClassScore(_Part):
    """How well one label is distinguished from the others."""

    precision: float
    recall: float
    f1: float
    count: int


class ReportRound(_Part):
    """One closed or failed round."""

    round: int
    state: str
    accuracy: float | None = None
    loss: float | None = None
    node_accuracy: float | None = None
    contributors: dict[str, Share] = Field(default_factory=dict)
    node_metrics: dict[str, NodeMetrics] = Field(default_factory=dict)
    rejected: dict[str, str] = Field(default_factory=dict)
    missing: dict[str, str] = Field(default_factory=dict)
    left_out: dict[str, str] | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    model: str | None = None
    why: str | None = None
    per_class: dict[str, ClassScore] = Field(default_factory=dict)
    confusion: list[list[int]] | None = None


class ReportNode(_Part):
    """What a node reported of itself."""

    samples: int | None = None
    labels: dict[str, int] | None = None
    runtime: str | None = None


class ReportStart(_Part):
    """The model before the first round."""

    accuracy: float | None = None
    loss: float | None = None


class ReportAncestor(_Part):
    """The model that the run began with: of a round of another run, or of a file."""

    run: str | None = None
    round: int | None = None
    file: str | None = None
    accuracy: float | None = None
    accuracy_here: float | None = None
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """A run that this one goes on from: accuracy by closed round, up to the round that was gone on from."""

    run: str
    points: tuple[tuple[int, float], ...]


class ReportRun(_Part):
    """A run."""

    run: str
    created: Annotated[float, Field(ge=0)] | str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    labels: list[str]
    initial: ReportStart = Field(default_factory=ReportStart)
    rounds: list[ReportRound] = Field(default_factory=list)
    nodes: dict[str, ReportNode] = Field(default_factory=dict)
    best_round: int | None = None
    stop: str | None = None
    summary: dict[str, Any] = Field(default_factory=dict)
    ancestor: ReportAncestor | None = None
    chain: tuple[EarlierRun, ...] = ()
    """The runs before, the oldest first, as far as their folders are there."""

    @property
    def best(self) -> ReportRound | None:
        """The round whose model is the result."""
        return next((r for r in self.rounds if r.round == self.best_round and r.state == "closed"), None)


@dataclass(frozen=True, slots=True)
class File:
    """A file of the run's folder."""

    name: str
    size: int
    sha256: str


def read_record(run_dir: Path) -> ReportRun:
    """Read both files. Raises DataError naming the file and what is wrong in it."""
    history = read_history(run_dir)
    summary = _read_summary(run_dir / "summary.json")
    try:
        record = ReportRun.model_validate({**history, "summary": summary, "chain": ()})
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise DataError(f"{run_dir / NAME}: {where}: {first['msg']}") from None
    for r in record.rounds:
        n = len(record.labels)
        if r.confusion is not None and [len(row) for row in r.confusion] != [n] * n:
            raise DataError(f"{run_dir / NAME}: round {r.round}: confusion is not {n} x {n}")
    return record.model_copy(update={"chain": _chain(record, run_dir.parent)})


def _chain(record: ReportRun, runs_dir: Path) -> tuple[EarlierRun, ...]:
    """The runs that it goes on from, as far back as their folders are there and hold."""
    found: list[EarlierRun] = []
    seen, ancestor = {record.run}, record.ancestor
    while ancestor is not None and ancestor.run is not None and len(found) < MAX_CHAIN:
        # A name from a file: the folder must lie beside this one.
        if ancestor.run in seen or Path(ancestor.run).name != ancestor.run:
            break
        seen.add(ancestor.run)
        try:
            before = ReportRun.model_validate({**read_history(runs_dir / ancestor.run), "chain": ()})
        except (DataError, ValidationError):
            break
        start = before.initial.accuracy
        points = [(0, start)] if start is not None and before.ancestor is None else []
        last = (
            ancestor.round if ancestor.round is not None else before.rounds[-1].round if before.rounds else 0
        )
        points += [(r.round, r.accuracy) for r in before.rounds if r.accuracy is not None and r.round <= last]
        found.append(EarlierRun(ancestor.run, tuple(points)))
        ancestor = before.ancestor
    return tuple(reversed(found))


def csv_bytes(record: ReportRun) -> bytes:
    """A row for the initial model and each round, UTF-8."""
    out = io.StringIO()
    rows = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    rows.writeheader()
    start = record.initial
    if start.accuracy is not None:
        rows.writerow({"round": 0, "state": "initial", "accuracy": start.accuracy, "loss": start.loss})
    for r in record.rounds:
        row = {name: getattr(r, name) for name in COLUMNS if name != "samples"}
        row |= {
            name: len(getattr(r, name) or ()) for name in ("contributors", "rejected", "missing", "left_out")
        }
        row["samples"] = sum(s.samples for s in r.contributors.values())
        rows.writerow({k: "" if v is None else v for k, v in row.items()})
    return out.getvalue().encode()


def files_in(run_dir: Path) -> list[File]:
    """Every finished file below `run_dir` but the page itself, by name."""
    found = []
    for path in sorted(p for p in run_dir.rglob("*") if p.is_file()):
        name = path.relative_to(run_dir)
        if name.name == "report.html" or any(part.startswith(".") for part in name.parts):
            continue
        found.append(File(str(name), path.stat().st_size, sha256_of(path)))
    return found


def _read_summary(path: Path) -> dict[str, Any]:
    """What it says; empty while the run goes on."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read: {e}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, expected an object")
    return value
