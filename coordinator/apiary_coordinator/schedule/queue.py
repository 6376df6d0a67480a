"""Runs one after another: requested by operators or begun by the schedule, journaled before confirmed."""

import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, Field, JsonValue, ValidationError

from apiary.blobs import BlobStore
from apiary.errors import ApiaryError, DataError, RequestRefused, SettingsError
from apiary.settings import RunSettings, Settings
from apiary.settings.run import LATEST
from apiary.wire.messages.base import first_error
from apiary.wire.topics import check_name
from apiary_coordinator import strategies
from apiary_coordinator.feature import CoordinatorFeature
from apiary_coordinator.fleet.demands import Demands
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.journal import RunRow
from apiary_coordinator.model.builder import ExportedModel, ModelBuilder
from apiary_coordinator.operators.requests import Arguments, Call, OperatorRequests
from apiary_coordinator.resources import Resources
from apiary_coordinator.run.ancestors import Ancestors
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.checks import check_run
from apiary_coordinator.run.finished import run_name
from apiary_coordinator.run.host import RunHost
from apiary_coordinator.schedule import retention, timetable
from apiary_coordinator.schedule.runbook import MAX_LISTED, RunBook
from apiary_coordinator.schedule.timetable import NewSamples, Past

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)
ModelBuilders = Callable[[Settings, BlobStore], ModelBuilder]
_LOOK_EVERY_S: Final = 5.0
_LABELS_EVERY_S: Final = 60.0
"""Between runs the held-out pictures are looked at so often: their labels are published before a run."""
_SINCE: Final = "schedule.since"
_SAMPLES: Final = "schedule.samples"
RESUMES: Final = "run=%s goes on where it stopped, with the settings it began with"


class StartRun(Arguments):
    """`run.start`: settings are those of `[run]`, dotted: `rounds`, `plan.epochs`."""

    name: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict, max_length=64)


class WhichRun(Arguments):
    """`run.stop`, `run.show`: unset, the run under way, or else the newest. A folder means its run."""

    name: Annotated[str, AfterValidator(lambda text: run_name(text) or text)] | None = None


class ListRuns(Arguments):
    """`run.list`."""

    limit: int = Field(20, ge=1, le=MAX_LISTED)


class RunQueue(CoordinatorFeature):
    """Zero or one run at a time. With `one` that run alone, and errors that end it are raised.

    Without, it is to stay: runs begin as operators request them, or as the schedule says.
    """

    def __init__(
        self,
        settings: Settings,
        host: RunHost,
        resources: Resources,
        roster: Roster,
        *,
        operators: OperatorRequests,
        builders: ModelBuilders,
        one: RunRow | None = None,
    ):
        self._settings = settings
        self._schedule = settings.schedule
        self._host = host
        self._resources = resources
        self._wall = resources.clocks.wall
        self._journal = resources.storage.journal
        self._roster = roster
        self._book = RunBook(self._journal)
        self._builders = builders
        self._one = one
        self._ancestors = Ancestors(resources.storage, settings.coordinator.runs_dir)
        self._samples = NewSamples()
        self._since = 0.0
        self._under_way: str | None = None
        self._look_at = 0.0
        self._labels_at = 0.0
        self._no_labels: str | None = None
        operators.register("run.start", StartRun, self._start)
        operators.register("run.stop", WhichRun, self._stop)
        operators.register("run.list", ListRuns, self._list, reads=True)
        operators.register("run.show", WhichRun, self._show, reads=True)

    def start(self, now: float) -> None:
        """Begin the one run, or resume the one that was under way."""
        self._book.open()
        since = self._journal.recall(_SINCE)
        if not isinstance(since, int | float):
            since = self._wall()
            self._journal.remember(_SINCE, since)
        # A clock that was put back must not make it wait for what has been.
        self._since = min(since, self._wall())
        self._samples.before = self._journal.recall(_SAMPLES) or {}
        self._expect(self._labels())
        self._labels_at = now + _LABELS_EVERY_S
        row = self._journal.active_run()
        for run in self._book.begun(1):
            if run.state != "active" and run.ended is None:
                self._book.ended(run.run, self._wall())
        self._clear()
        retention.serve_current_model(self._resources, len(self._roster))
        if self._one is not None:
            self._begin(self._one)
        elif row is not None:
            self._resume(row)

    def tick(self, now: float) -> None:
        """Note what has ended; begin what waits, or what the schedule says."""
        if self._host.active is not None:
            self._under_way = self._host.active.name
            return
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        if self._under_way is not None:
            self._book.ended(self._under_way, self._wall())
            self._under_way = None
        if self._one is not None:
            return
        if now >= self._labels_at:
            self._labels_at = now + _LABELS_EVERY_S
            # The worker's: a folder of many pictures, or one on the network, would hold up the loop.
            self._resources.worker.submit(self._labels, self._expect)
        if (row := self._journal.active_run()) is not None:
            self._resume(row)  # a full disk kept its end, or its beginning, from being written
        elif waiting := self._book.waiting():
            self._next(waiting[0])
        elif (why := self._due()) is not None:
            run = fresh_name(self._wall())
            settings = self._going_on().journaled()
            self._book.request(run, self._wall(), settings, why=why, request=None)
            self._next(self._book.waiting()[0])

    # -- operations ------------------------------------------------------------------------------------

    def _start(self, call: Call, args: StartRun) -> None:
        if self._one is not None:
            raise RequestRefused(
                "this coordinator was started for one run; with --stay it takes one after another"
            )
        request = f"{call.operator}/{call.id}"
        run = self._book.requested_by(request)
        if run is None:
            run = args.name or fresh_name(self._wall())
            check_name(run, "the run's name")
            if (self._settings.coordinator.runs_dir / run).exists():
                raise RequestRefused(f"there is a folder for a run {run!r} already: give another name")
            settings = run_settings(self._settings, args.settings)
            self._builder(self._settings.model_copy(update={"run": settings})).labels()
            self._ancestors.find(settings)
            self._book.request(
                run,
                self._wall(),
                settings.journaled(),
                why=f"by operator {call.operator}",
                request=request,
            )
            log.info("run=%s requested by operator=%s", run, call.operator)
            self._look_at = 0.0
        names = [row.id for row in self._book.waiting()]
        ahead = names.index(run) if run in names else 0
        call.done({"run": run, "ahead": ahead + (self._host.active is not None and run in names)})

    def _stop(self, call: Call, args: WhichRun) -> None:
        active = self._host.active
        why = f"stopped by operator {call.operator}"
        waiting = [row.id for row in self._book.waiting()]
        if args.name is not None and args.name in waiting:
            self._book.withdraw(args.name, why, self._wall())
            call.done({"run": args.name, "state": "withdrawn"})
        elif active is None or args.name not in (None, active.name):
            raise RequestRefused(self._why_none(args.name))
        else:
            active.stop(why)
            best = active.history.best
            state = "stopping" if active.stage != "done" else "stopped"
            call.done({"run": active.name, "state": state, "best": best.round if best is not None else None})

    def _list(self, call: Call, args: ListRuns) -> None:
        wall = self._wall()
        self._count()
        call.done(
            {
                "runs": [asdict(run) for run in self._book.listed(args.limit)],
                "next": timetable.upcoming(self._schedule, self._past(), wall),
                "new_samples": self._samples.count,
                "wanted_samples": self._schedule.new_samples,
            }
        )

    def _show(self, call: Call, args: WhichRun) -> None:
        active = self._host.active
        name = args.name or (active.name if active is not None else None)
        if name is None:
            newest = self._book.listed(1)
            name = newest[0].run if newest else None
        found = self._book.one(name) if name is not None else None
        row = self._journal.run(name) if name is not None else None
        if found is None or row is None:
            raise RequestRefused(f"no run {name!r}; there are: apiary run list" if name else "no run yet")
        call.done(
            {
                **asdict(found),
                "settings": json.loads(row.settings),
                "folder": str(self._settings.coordinator.runs_dir / found.run),
                "stage": active.stage if active is not None and active.name == name else None,
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

    def _going_on(self) -> RunSettings:
        """The settings of a run that the schedule begins: from the newest model, if nothing else is set."""
        run = self._settings.run
        if run.start_from is not None:
            return run
        latest = run.model_copy(update={"start_from": LATEST})
        try:
            self._ancestors.find(latest)
        except SettingsError as e:
            log.warning("the next run begins from scratch: %s", e)
            return run
        return latest

    def _labels(self) -> tuple[str, ...] | DataError:
        """The labels that a run would have now, or why it could have none."""
        try:
            return self._builder(self._settings).labels()
        except DataError as e:
            return e

    def _expect(self, found: tuple[str, ...] | DataError) -> None:
        """What the next run needs of nodes, so that it is published before it begins."""
        labels = () if isinstance(found, DataError) else found
        why = str(found) if isinstance(found, DataError) else None
        if why is not None and why != self._no_labels:
            log.warning("no run can begin yet: %s", why)
        self._no_labels = why
        run = self._settings.run
        plan = strategies.load(run).plan(run.plan)
        self._host.upcoming = Demands.of(run, plan, labels)

    def _due(self) -> str | None:
        self._count()
        return timetable.due(self._schedule, self._past(), self._wall(), self._samples.count)

    def _count(self) -> None:
        for node in self._roster.nodes.values():
            if node.status.samples is not None:
                self._samples.report(node.id, node.status.samples)

    def _past(self) -> Past:
        began, ended = self._book.last() or (None, None)
        return Past(self._since, began, ended)

    def _clear(self) -> None:
        """Folders are removed only where it is to stay: one run by hand leaves the others alone."""
        coordinator = self._settings.coordinator
        keep_runs = coordinator.keep_runs if self._one is None else 0
        retention.clear(self._resources, self._book, coordinator.runs_dir, keep_runs)

    def _next(self, row: RunRow) -> None:
        """Begin a waiting run; what made it begin is dealt with."""
        self._count()
        self._since = self._wall()
        self._journal.remember(_SINCE, self._since)
        self._journal.remember(_SAMPLES, dict(self._samples.begin()))
        self._book.begin(row.id, self._wall())
        self._clear()
        self._begin(row)

    def _resume(self, row: RunRow) -> None:
        log.info(RESUMES, row.id)
        self._begin(row)

    def _begin(self, row: RunRow) -> None:
        try:
            self._host.begin(self._assignment(row))
        except ApiaryError as e:
            if self._one is not None:
                raise
            log.error("run=%s cannot begin: %s", row.id, e)
            self._journal.end_run(row.id, "failed", str(e))
            self._book.ended(row.id, self._wall())

    def _assignment(self, row: RunRow) -> Assignment:
        settings = self._settings.model_copy(update={"run": stored(row, RunSettings, row.settings)})
        exported = stored(row, ExportedModel, row.exported) if row.exported else None
        return Assignment(row.id, row.created, settings, self._builder(settings), exported, row.stop)

    def _builder(self, settings: Settings) -> ModelBuilder:
        return self._builders(settings, self._resources.storage.blobs)


def stored(row: RunRow, kind: type[M], text: str) -> M:
    """What the journal has of a run. Raises SettingsError."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as e:
        raise SettingsError(f"run {row.id} was journaled by another version: {first_error(e)}") from None


def fresh_name(wall: float) -> str:
    """A name for a run that has none: when it began, and four digits that tell two of one second apart."""
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(wall)) + f"-{secrets.token_hex(2)}"


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
        raise SettingsError(f"run.{first_error(e)}") from None
    check_run(run)
    return run
