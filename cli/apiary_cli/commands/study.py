"""`apiary study`: a grid of simulated runs over cases, settings, shares and seeds; one table, one page."""

import argparse
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from apiary import __version__
from apiary.errors import ApiaryError, RunFailed, SettingsError
from apiary.files import write_atomic
from apiary.folder_lock import hold_folder
from apiary.learn.runtimes.base import Runtime
from apiary.process.allocator import tune
from apiary.settings import Settings
from apiary_cli.datasets.partition import Pool
from apiary_cli.simulation.setup import jobs_of, placed, scenario_of, settings_for, with_min_nodes
from apiary_cli.simulation.shares import open_pool, share_out
from apiary_cli.simulation.simulation import simulate
from apiary_cli.study import page
from apiary_cli.study.plan import Cell, StudyPlan, identity, read_plan
from apiary_cli.study.results import Point, ResultsFile, RunResult, points_of, result_of
from apiary_cli.study.table import header, legend, markdown, rows
from apiary_cli.terminal import flags, logs
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_cli.terminal.table import duration, share, table
from apiary_coordinator.model.keras import KerasModelBuilder
from apiary_coordinator.publishers._after_run import draw_report
from apiary_coordinator.report.tables import read_record
from apiary_coordinator.run.checks import check_settings
from apiary_coordinator.schedule.queue import ModelBuilders

EXAMPLES = """examples:
  apiary study strategies.toml               run what is missing, then print the table
  apiary study strategies.toml --list        the runs that it asks for, and which are done
  apiary study strategies.toml --table       the table and the page of what is done, without a run
  apiary study strategies.toml --source cifar10-12k.npz

FILE.toml:
  source = "digits"            # as `apiary simulate`
  seeds = [0, 1, 2]
  baseline = { case = "fedavg" }
  shares = { nodes = 8 }
  settings = { "run.rounds" = 10 }
  grid = { "shares.alpha" = [0.1, 0.5] }
  [case.fedavg]
  [case.fedacg]
  "run.strategy" = "fedacg"

Stop it at any time: the same command goes on with the runs that are missing. docs/simulation.md
"""
_DATA = ".data"
_WORK = ".work"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Simulate a grid of runs, resumable, and compare them in one table and one page."
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="what to run")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results and run folders go (studies/FILE's name)"
    )
    parser.add_argument("--source", metavar="SOURCE", help="pictures, in place of the file's `source`")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that train (as many as cores)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--list", action="store_true", help="print the runs, and run nothing")
    which.add_argument("--table", action="store_true", help="print the table so far, and run nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")


def run(args: argparse.Namespace) -> int:
    """Run what is missing; 0 with all of it. Raises ApiaryError, RunFailed where runs failed."""
    plan = read_plan(args.file, source=args.source)
    folder = args.out or Path("studies") / args.file.stem
    jobs = jobs_of(args.jobs)
    settings = [_settings(args, plan, cell, folder) for cell in plan.cells]
    ids = [identity(cell, plan.file, made) for cell, made in zip(plan.cells, settings, strict=True)]
    results = ResultsFile(folder)
    found = results.read()
    if args.list:
        return _list(args, plan, [found.get(i) for i in ids])
    if not args.table:
        with (
            hold_folder(folder, "apiary study", "let it end, or give another --out"),
            stop_on_signals() as stop,
        ):
            found = results.read()
            todo = [
                (cell, made, i)
                for cell, made, i in zip(plan.cells, settings, ids, strict=True)
                if i not in found or found[i].error is not None
            ]
            tune()
            if not args.verbose:
                logs.warnings_only()  # a line a run, not ten a round
            try:
                Study(plan, folder, jobs, stop).run(todo)
            finally:
                shutil.rmtree(folder / _DATA, ignore_errors=True)
                shutil.rmtree(folder / _WORK, ignore_errors=True)
            if stop():
                return stop.exit_code
    return _report(args, plan, folder, [row for i in ids if (row := results.read().get(i)) is not None])


class Study:
    """Runs one after the other; what ends is in the results file before the next begins."""

    def __init__(
        self,
        plan: StudyPlan,
        folder: Path,
        jobs: int,
        stop: Callable[[], bool],
        *,
        builders: ModelBuilders = KerasModelBuilder,
        runtime: Runtime | None = None,
    ):
        self._plan, self._folder, self._jobs, self._stop = plan, folder, jobs, stop
        self._builders, self._runtime = builders, runtime
        self._results = ResultsFile(folder)
        self._pool: tuple[int, Pool] | None = None
        self._took: deque[float] = deque(maxlen=10)

    def run(self, todo: list[tuple[Cell, Settings, str]]) -> None:
        """Make these runs. One that fails is noted, and the next begins. Raises DataError, StoreError."""
        done = len(self._plan.cells) - len(todo)
        for n, (cell, settings, key) in enumerate(todo, 1):
            if self._stop():
                return
            pool = self._pool_of(cell.seed)
            began = time.monotonic()
            row = self._one(cell, settings, key, pool)
            if row is None:
                return
            self._results.add(row)
            self._took.append(time.monotonic() - began)
            left = duration(fmean(self._took) * (len(todo) - n))
            how = f"accuracy {share(row.last(self._plan.file.tail))}" if row.error is None else row.error
            self._say(f"{done + n} of {len(self._plan.cells)}: {cell.title}: {how}, {left} left")

    def _one(self, cell: Cell, settings: Settings, key: str, pool: Pool) -> RunResult | None:
        work = self._folder / _WORK
        shutil.rmtree(work, ignore_errors=True)
        began = time.monotonic()
        try:
            shares = share_out(pool, cell.sharing)
            scenario = scenario_of(shares, cell.fleet, None, settings, self._jobs)
            scenario = replace(scenario, runtime=self._runtime)
            made = simulate(
                placed(settings, scenario, work),
                scenario,
                work,
                stop=self._stop,
                after_run=draw_report,
                builders=self._builders,
            )
            if made is None:
                return None
            record = read_record(made.folder)
        except ApiaryError as e:
            return RunResult(id=key, axes=cell.axes, seed=cell.seed, error=str(e), version=__version__)
        return result_of(
            record,
            key=key,
            axes=cell.axes,
            seed=cell.seed,
            virtual_s=made.figures["virtual_s"],
            real_s=time.monotonic() - began,
            folder=str(made.folder.resolve().relative_to(self._folder.resolve())),
            version=__version__,
        )

    def _pool_of(self, seed: int) -> Pool:
        """The pictures as this seed draws and holds them out; those of one seed are on disk at a time."""
        if self._pool is None or self._pool[0] != seed:
            where = self._folder / _DATA
            shutil.rmtree(where, ignore_errors=True)
            file = self._plan.file
            self._say(f"pictures of {file.source}, seed {seed}")
            pool = open_pool(file.source, where, data_dir=file.data, seed=seed, limit=file.limit)
            self._pool = (seed, pool)
        return self._pool[1]

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _settings(args: argparse.Namespace, plan: StudyPlan, cell: Cell, folder: Path) -> Settings:
    """A run's settings, checked as a coordinator checks them. Raises SettingsError naming the run."""
    try:
        given = {**cell.overrides, "run.seed": cell.seed, "coordinator.runs_dir": folder / "runs"}
        made = settings_for(args.config, {**given, **flags.overrides_of(args)}, plan.file.source)
        made = with_min_nodes(made, cell.sharing.nodes)
        check_settings(made)
        if made.run.min_nodes > cell.sharing.nodes:
            raise SettingsError(
                f"run.min_nodes is {made.run.min_nodes}, and shares.nodes {cell.sharing.nodes}: "
                "no round would ever begin"
            )
    except SettingsError as e:
        raise SettingsError(f"study {args.file}: {cell.title}: {e}") from None
    return made


def _list(args: argparse.Namespace, plan: StudyPlan, found: list[RunResult | None]) -> int:
    states = ["" if row is None else "failed" if row.error is not None else "done" for row in found]
    listed = [
        {"axes": dict(cell.axes), "seed": cell.seed, "state": state or "to do"}
        for cell, state in zip(plan.cells, states, strict=True)
    ]
    if args.json:
        print(json.dumps({"runs": listed}))
        return 0
    lines = [
        [*(value for _, value in cell.axes), str(cell.seed), state or "to do"]
        for cell, state in zip(plan.cells, states, strict=True)
    ]
    print(table([*(axis.upper() for axis, _ in plan.axes), "SEED", "STATE"], lines))
    return 0


def _report(args: argparse.Namespace, plan: StudyPlan, folder: Path, found: list[RunResult]) -> int:
    points = points_of(plan, found)
    failed = [row for row in found if row.error is not None]
    if found:
        write_atomic(folder / "table.md", markdown(plan, points).encode())
        write_atomic(folder / "study.html", page.render(plan, points, folder.name))
    if args.json:
        print(json.dumps({"folder": str(folder), "points": [_json_of(point, plan) for point in points]}))
    else:
        print(table([name.upper() for name in header(plan)], rows(plan, points)))
        print(legend(plan), file=sys.stderr)
        if found:
            print(f"page: {folder}/study.html, table: {folder}/table.md", file=sys.stderr)
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(plan.cells)} runs failed, the first: {failed[0].error}; "
            "the same command tries them again"
        )
    return 0


def _json_of(point: Point, plan: StudyPlan) -> dict[str, object]:
    return {
        "axes": dict(point.axes),
        "seeds": [row.seed for row in point.results],
        "last": [row.last(plan.file.tail) for row in point.results],
        "accuracy": asdict(point.last) if point.last else None,
        "best": asdict(point.best) if point.best else None,
        "gain": asdict(point.gain) if point.gain else None,
        "bytes_up": point.bytes_up,
        "virtual_s": point.virtual_s,
    }
