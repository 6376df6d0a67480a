"""A study's file and the runs that it asks for: every case with every value of the grid and every seed."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apiary.errors import SettingsError
from apiary.learn.partition import Kind
from apiary.settings import Settings, flatten
from apiary.text_files import read_text
from apiary.wire.messages.base import first_error
from apiary_cli.simulation.fleet import MAX_NODES, FleetModel
from apiary_cli.simulation.shares import Sharing

MAX_RUNS: Final = 10_000
CASE: Final = "case"
"""The axis whose values are the named tables of `[case]`."""
Value = str | int | float | bool
Axes = tuple[tuple[str, str], ...]
"""What a run is, without its seed: axis and value, as text, in the file's order."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_P = TypeVar("_P", bound=BaseModel)


class SharesPart(_Part):
    """`[shares]`: as the flags of `apiary simulate`."""

    nodes: int = Field(10, ge=1, le=MAX_NODES)
    by: Kind = "dirichlet"
    alpha: float = Field(0.5, gt=0, le=1e6)
    shards: int = Field(2, ge=1, le=1000)
    sigma: float = Field(1.0, ge=0, le=10)
    each: int | None = Field(None, ge=1, le=10_000_000)


class StudyFile(_Part):
    """What FILE.toml may say."""

    source: str = Field(min_length=1, max_length=1000)
    data: Path | None = None
    limit: int | None = Field(None, ge=1)
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=1000)] = [0]
    tail: int = Field(1, ge=1, le=1000)
    baseline: dict[str, Value] = {}
    shares: SharesPart = SharesPart()
    fleet: FleetModel = FleetModel()
    settings: dict[str, Any] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1, max_length=100)]] = {}
    case: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run. `overrides` are its settings by dotted key, without the seed."""

    axes: Axes
    seed: int
    sharing: Sharing
    fleet: FleetModel
    overrides: Mapping[str, Any]

    @property
    def title(self) -> str:
        """`fedacg, shares.alpha 0.1, seed 2`."""
        named = [value if axis == CASE else f"{axis} {value}" for axis, value in self.axes]
        return ", ".join([*named, f"seed {self.seed}"])


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """A study: `axes` with their values, and its runs, all of a seed before those of the next."""

    file: StudyFile
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    cells: tuple[Cell, ...]

    @property
    def lines(self) -> str | None:
        """The axis whose values are compared: that of the baseline, else `case`, else the grid's first."""
        known = [axis for axis, _ in self.axes]
        return next(iter(self.file.baseline), known[0] if known else None)

    def baseline_of(self, axes: Axes) -> Axes:
        """What a run is compared with; the run itself where there is no baseline."""
        base = {axis: text_of(value) for axis, value in self.file.baseline.items()}
        return tuple((axis, base.get(axis, value)) for axis, value in axes)


def read_plan(path: Path, *, source: str | None = None) -> StudyPlan:
    """Read FILE.toml, with another `source` where one is given.

    Raises SettingsError naming what is wrong and what there is.
    """
    try:
        content = tomllib.loads(read_text(path, what="study"))
        file = StudyFile.model_validate(content if source is None else content | {"source": source})
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"study {path} is not TOML: {e}") from None
    except ValidationError as e:
        raise SettingsError(f"study {path}: {first_error(e, 'study')}") from None
    try:
        return plan_of(file)
    except SettingsError as e:
        raise SettingsError(f"study {path}: {e}") from None


def plan_of(file: StudyFile) -> StudyPlan:
    """The runs of a study. Raises SettingsError."""
    if len(set(file.seeds)) != len(file.seeds):
        raise SettingsError(f"seeds {file.seeds}: expected each once")
    axes: list[tuple[str, list[tuple[str, Mapping[str, Any]]]]] = []
    if file.case:
        axes.append((CASE, list(file.case.items())))
    for key, values in file.grid.items():
        if key == CASE:
            raise SettingsError("grid: an axis cannot be named case: cases are tables, [case.NAME]")
        axes.append((key, [(text_of(value), {key: value}) for value in values]))
    for axis, points in axes:
        texts = [text for text, _ in points]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise SettingsError(f"grid: {axis} has {twice} more than once")
    runs = len(file.seeds)
    for _, points in axes:
        runs *= len(points)
    if runs > MAX_RUNS:
        raise SettingsError(
            f"{runs} runs, expected at most {MAX_RUNS}: fewer seeds, or fewer values in a grid"
        )
    _check_baseline(file, {axis: [text for text, _ in points] for axis, points in axes})
    cells = []
    for seed in file.seeds:
        for point in itertools.product(*(points for _, points in axes)):
            changed = {key: value for _, values in point for key, value in values.items()}
            named = tuple((axis, text) for (axis, _), (text, _) in zip(axes, point, strict=True))
            cells.append(_cell(file, named, seed, changed))
    return StudyPlan(
        file, tuple((axis, tuple(text for text, _ in points)) for axis, points in axes), tuple(cells)
    )


def identity(cell: Cell, file: StudyFile, settings: Settings) -> str:
    """What the run's result depends on, as hex digits: a run of the same identity is not made again."""
    counts = {key: value for key, value in flatten(settings).items() if key.startswith("run.")}
    base = settings.coordinator.base_weights
    content = {
        "source": file.source,
        "limit": file.limit,
        "sharing": asdict(cell.sharing),
        "fleet": cell.fleet.model_dump(mode="json"),
        "settings": counts,
        "base_weights": str(base) if base is not None else None,
        "labels": settings.coordinator.labels,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


def text_of(value: Any) -> str:
    """A value as it stands in the table: `0.1`, `true`, `fedacg`, JSON for a list or a table."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _cell(file: StudyFile, axes: Axes, seed: int, changed: Mapping[str, Any]) -> Cell:
    parts: dict[str, dict[str, Any]] = {"shares": {}, "fleet": {}}
    overrides: dict[str, Any] = {}
    for key, value in changed.items():
        section, _, name = key.partition(".")
        if section in parts and name:
            parts[section][name] = value
        else:
            overrides[key] = value
    if "run.seed" in overrides:
        raise SettingsError("run.seed: a study's seeds are its list `seeds`")
    shares = _with(SharesPart, "shares", file.shares, parts["shares"])
    if shares.each is not None and shares.by not in ("iid", "dirichlet"):
        raise SettingsError(f"shares.each draws each node's pictures by iid or dirichlet, not by {shares.by}")
    sharing = Sharing(**shares.model_dump(), seed=seed)
    fleet = _with(FleetModel, "fleet", file.fleet, parts["fleet"])
    return Cell(axes, seed, sharing, fleet, {**file.settings, **overrides})


def _with(kind: type[_P], section: str, base: _P, changes: Mapping[str, Any]) -> _P:
    try:
        return kind.model_validate({**base.model_dump(exclude_unset=True), **changes})
    except ValidationError as e:
        raise SettingsError(f"{section}.{first_error(e)}") from None


def _check_baseline(file: StudyFile, axes: Mapping[str, list[str]]) -> None:
    for axis, value in file.baseline.items():
        if axis not in axes:
            there = ", ".join(axes) or "none"
            raise SettingsError(f"baseline: there is no axis {axis}; there are: {there}")
        if (text := text_of(value)) not in axes[axis]:
            raise SettingsError(f"baseline: {axis} is never {text}; it is: {', '.join(axes[axis])}")
