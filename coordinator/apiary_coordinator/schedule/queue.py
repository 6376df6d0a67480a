"""Runs one after another: asked for by operators or begun by the timetable, journaled before told of."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Final
from zoneinfo import ZoneInfo

from pydantic import Field, JsonValue, ValidationError

from apiary.blobs import BlobStore
from apiary.errors import ApiaryError, RequestRefused, SettingsError
from apiary.plugins import names
from apiary.settings import RunSettings, ScheduleSettings, Settings
from apiary.wire.topics import check_name
from apiary_coordinator.feature import CoordinatorFeature, Desk
from apiary_coordinator.journal import RunRow
from apiary_coordinator.model.builder import ExportedModel, ModelBuilder
from apiary_coordinator.operators.requests import Arguments, Call, OperatorRequests
from apiary_coordinator.recipes.base import check_options
from apiary_coordinator.round.start import strategy
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.run import Run
from apiary_coordinator.schedule import retention, timetable
from apiary_coordinator.schedule.runbook import MAX_LISTED, RunBook
from apiary_coordinator.schedule.timetable import NewSamples, Past, Timetable

log = logging.getLogger(__name__)

ModelBuilders = Callable[[Settings, BlobStore], ModelBuilder]
_LOOK_EVERY_S: Final = 5.0
_SINCE: Final = "schedule.since"
_SAMPLES: Final = "schedule.samples"


class StartRun(Arguments):
    """`run.start`: settings are those of `[run]`, dotted: `rounds`, `plan.epochs`."""

    name: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict, max_length=64)


class WhichRun(Arguments):
    """`run.stop`, `run.show`: unset, the run that is under way, or else the newest."""

    name: str | None = None


class ListRuns(Arguments):
    """`run.list`."""

    limit: int = Field(20, ge=1, le=MAX_LISTED)


class RunQueue(CoordinatorFeature):
    """Zero or one run at a time. Without `workshops` there is one run only, which somebody else began."""

    def __init__(
        self, desk: Desk, operators: OperatorRequests, book: RunBook, workshops: ModelBuilders | None
    ):
        self._desk = desk
        self._book = book
        self._workshops = workshops
        self._table = timetable_of(desk.settings.schedule)
        self._samples = NewSamples()
        self._since = 0.0
        self._under_way: str | None = None
        self._look_at = 0.0
        operators.register("run.start", StartRun, self._start)
        operators.register("run.stop", WhichRun, self._stop)
        operators.register("run.list", ListRuns, self._list)
        operators.register("run.show", WhichRun, self._show)

    def start(self, now: float) -> None:
        """Take up the run that was under way."""
        self._book.open()
        since = self._book.recall(_SINCE)
        if not isinstance(since, int | float):
            since = self._desk.wall()
            self._book.remember(_SINCE, since)
        # A clock that was put back must not make it wait for what has been.
        self._since = min(since, self._desk.wall())
        self._samples.before = self._book.recall(_SAMPLES) or {}
        row = self._desk.journal.active_run()
        for run in self._book.begun(1):
            if run.state != "active" and run.ended is None:
                self._book.ended(run.run, self._desk.wall())
        retention.clear(self._desk, self._book, folders=self._workshops is not None)
        retention.remind(self._desk, self._book)
        if self._workshops is not None and row is not None:
            self._take_up(row)

    def tick(self, now: float) -> None:
        """Note what has ended; begin what waits, or what the timetable says."""
        course = self._desk.course()
        if course is not None and course.stage != "done":
            self._under_way = course.run
            return
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        if self._under_way is not None:
            self._book.ended(self._under_way, self._desk.wall())
            self._under_way = None
        if self._workshops is None:
            return
        if (row := self._desk.journal.active_run()) is not None:
            self._take_up(row)  # a full disk kept its end, or its beginning, from being written
        elif waiting := self._book.waiting():
            self._begin(waiting[0])
        elif (why := self._due()) is not None:
            settings = self._desk.settings.run.model_dump_json()
            run = fresh_name(self._desk.wall())
            self._book.ask_for(run, self._desk.wall(), settings, why=why, request=None)
            self._begin(self._book.waiting()[0])

    # -- operations ------------------------------------------------------------------------------------

    def _start(self, call: Call, args: StartRun) -> None:
        if self._workshops is None:
            raise RequestRefused(
                "this coordinator was started for one run; with --stay it takes one after another"
            )
        request = f"{call.operator}/{call.id}"
        run = self._book.asked_by(request)
        if run is None:
            run = args.name or fresh_name(self._desk.wall())
            check_name(run, "the run's name")
            if (self._desk.settings.coordinator.runs_dir / run).exists():
                raise RequestRefused(f"there is a folder for a run {run!r} already: give another name")
            settings = run_settings(self._desk.settings, args.settings)
            self._workshop(settings).check()
            self._book.ask_for(
                run,
                self._desk.wall(),
                settings.model_dump_json(),
                why=f"by operator {call.operator}",
                request=request,
            )
            log.info("run=%s asked for by operator=%s", run, call.operator)
            self._look_at = 0.0
        names = [row.id for row in self._book.waiting()]
        ahead = names.index(run) if run in names else 0
        call.done({"run": run, "ahead": ahead + (self._course() is not None and run in names)})

    def _stop(self, call: Call, args: WhichRun) -> None:
        course = self._course()
        why = f"stopped by operator {call.operator}"
        waiting = [row.id for row in self._book.waiting()]
        if args.name is not None and args.name in waiting:
            self._book.withdraw(args.name, why, self._desk.wall())
            call.done({"run": args.name, "state": "withdrawn"})
        elif course is None or args.name not in (None, course.run):
            raise RequestRefused(self._why_none(args.name))
        else:
            course.stop(why)
            best = course.record.best
            state = "stopping" if course.stage != "done" else "stopped"
            call.done({"run": course.run, "state": state, "best": best.round if best is not None else None})

    def _list(self, call: Call, args: ListRuns) -> None:
        wall = self._desk.wall()
        self._count()
        call.done(
            {
                "runs": [run.told() for run in self._book.listed(args.limit)],
                "next": timetable.upcoming(self._table, self._past(), wall),
                "new_samples": self._samples.count,
                "wanted_samples": self._table.new_samples,
            }
        )

    def _show(self, call: Call, args: WhichRun) -> None:
        course = self._course()
        name = args.name or (course.run if course is not None else None)
        if name is None:
            newest = self._book.listed(1)
            name = newest[0].run if newest else None
        found = self._book.one(name) if name is not None else None
        row = self._desk.journal.run(name) if name is not None else None
        if found is None or row is None:
            raise RequestRefused(f"no run {name!r}; there are: apiary run list" if name else "no run yet")
        live = course if course is not None and course.run == name else None
        call.done(
            {
                **found.told(),
                "settings": json.loads(row.settings),
                "folder": str(self._desk.settings.coordinator.runs_dir / found.run),
                "stage": live.stage if live is not None else None,
                "results": list[JsonValue](self._book.rounds(found.run)),
            }
        )

    # -- small parts -----------------------------------------------------------------------------------

    def _why_none(self, name: str | None) -> str:
        """Why there is nothing to stop."""
        found = self._book.one(name) if name is not None else None
        if name is None:
            return "no run is under way"
        if found is None:
            return f"no run {name!r}; there are: apiary run list"
        return f"run {name!r} is over already: {found.state}" + (f", {found.stop}" if found.stop else "")

    def _course(self) -> Run | None:
        course = self._desk.course()
        return course if course is not None and course.stage != "done" else None

    def _due(self) -> str | None:
        if self._table.empty:
            return None
        self._count()
        return timetable.due(self._table, self._past(), self._desk.wall(), self._samples.count)

    def _count(self) -> None:
        for node in self._desk.roster.nodes.values():
            if node.status.samples is not None:
                self._samples.report(node.id, node.status.samples)

    def _past(self) -> Past:
        began, ended = self._book.last() or (None, None)
        return Past(self._since, began, ended)

    def _begin(self, row: RunRow) -> None:
        """The next run; what made it begin is dealt with."""
        self._count()
        self._since = self._desk.wall()
        self._book.remember(_SINCE, self._since)
        self._book.remember(_SAMPLES, dict(self._samples.begin()))
        self._book.begin(row.id, self._desk.wall())
        retention.clear(self._desk, self._book, folders=True)
        self._go(row)

    def _take_up(self, row: RunRow) -> None:
        log.info("run=%s goes on where it stopped, with the settings it began with", row.id)
        self._go(row)

    def _go(self, row: RunRow) -> None:
        try:
            self._desk.begin(self._assignment(row))
        except ApiaryError as e:
            log.error("run=%s cannot begin: %s", row.id, e)
            self._desk.journal.end_run(row.id, "failed", str(e))
            self._book.ended(row.id, self._desk.wall())

    def _assignment(self, row: RunRow) -> Assignment:
        try:
            run = RunSettings.model_validate_json(row.settings)
            artefacts = ExportedModel.model_validate_json(row.artefacts) if row.artefacts else None
        except ValidationError as e:
            raise SettingsError(f"run {row.id} was journaled by another version: {e}") from None
        settings = self._desk.settings.model_copy(update={"run": run})
        return Assignment(row.id, row.created, settings, self._workshop(run), artefacts, row.stop)

    def _workshop(self, run: RunSettings) -> ModelBuilder:
        assert self._workshops is not None  # noqa: S101 - asked before
        return self._workshops(self._desk.settings.model_copy(update={"run": run}), self._desk.blobs)


def fresh_name(wall: float) -> str:
    """A name for a run that has none: when it began, and four digits that tell two of one second apart."""
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(wall)) + f"-{secrets.token_hex(2)}"


def timetable_of(schedule: ScheduleSettings) -> Timetable:
    """The timetable that the settings describe."""
    return Timetable(
        at=tuple(schedule.at),
        days=tuple(schedule.days),
        zone=ZoneInfo(schedule.timezone) if schedule.timezone else None,
        every_s=schedule.every_hours * 3600 if schedule.every_hours is not None else None,
        new_samples=schedule.new_samples,
        min_pause_s=schedule.min_pause_s,
    )


def run_settings(settings: Settings, changes: dict[str, JsonValue]) -> RunSettings:
    """The coordinator's `[run]` with some of its settings changed. Raises SettingsError naming the key."""
    merged: dict[str, Any] = settings.run.model_dump(mode="json")
    for key, value in changes.items():
        at = merged
        *parents, last = key.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise SettingsError(f"run.{key}: {parent} holds one value, not several")
        at[last] = value
    try:
        run = RunSettings.model_validate(merged)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"run.{where} is {str(first.get('input'))[:60]!r}: {first['msg']}") from None
    if run.recipe not in (known := names("apiary_coordinator.recipes")):
        raise SettingsError(f"run.recipe is {run.recipe[:60]!r}; there are: {', '.join(known)}")
    check_options(run.recipe, run.recipe_options)
    strategy(settings.model_copy(update={"run": run})).plan(run.plan, run.strategy_options)
    return run
