"""`apiary coordinator`: one run, or with `--stay` one after another; an unfinished one is taken up again."""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from apiary.blobs import BlobStore
from apiary.bus.client_id import passing_id
from apiary.bus.mqtt import MqttBus
from apiary.errors import DataError, RunFailed, SettingsError, StoreError
from apiary.identity.gate import OPEN, load_gate
from apiary.identity.roles import Role
from apiary.notify import Notifier
from apiary.process.allocator import tune
from apiary.process.deathsig import die_with_parent
from apiary.settings import RunSettings, Settings
from apiary_cli.terminal import flags
from apiary_cli.terminal.live import LiveView, log_through
from apiary_cli.terminal.once import FirstConnection
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_cli.terminal.view import RunView
from apiary_coordinator.app import features
from apiary_coordinator.journal import Journal, RunRow
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.keras import KerasModelBuilder, held_out_labels
from apiary_coordinator.publishers.after_run import publish_after_run
from apiary_coordinator.round.start import strategy
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.run import Run
from apiary_coordinator.schedule.queue import fresh_name
from apiary_coordinator.service import Coordinator, will
from apiary_coordinator.worker import ThreadWorker

log = logging.getLogger(__name__)

_REPORT_S: Final = 120.0
"""A report takes seconds; on a machine that swaps, minutes."""
EXAMPLES = """examples:
  apiary coordinator --test-data held-out --rounds 10 --min-nodes 2
  apiary coordinator --config apiary.toml --json
  apiary coordinator --test-data held-out --new        leave an unfinished run behind
  apiary coordinator --test-data held-out --run autumn
  apiary coordinator --stay                            runs by `apiary run start` or [schedule], until stopped

Without --stay the coordinator exits when the run is over. Stopped before, it goes on with the same command.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Open rounds, aggregate and evaluate until the run is over; write its result to runs/RUN."
    )
    parser.add_argument("--test-data", type=Path, metavar="DIR", help="held-out pictures, LABEL/*.jpg|png")
    parser.add_argument("--rounds", type=int, help="at most this many rounds")
    parser.add_argument("--min-nodes", type=int, metavar="N", help="wait for this many nodes")
    parser.add_argument("--recipe", help="model recipe: edge_cnn, mobilenet_v2, char_rnn")
    parser.add_argument("--strategy", help="fedavg, fedprox")
    parser.add_argument("--target-accuracy", type=float, metavar="A", help="stop once this good, e.g. 0.95")
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="journal, spool, models")
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", help="where results go")
    flags.add_broker(parser)
    parser.add_argument(
        "--run", metavar="NAME", help="name of the run; one that is finished is told again, not run again"
    )
    parser.add_argument(
        "--stay", action="store_true", help="stay up: zero or one run at a time, then wait for the next"
    )
    parser.add_argument("--new", action="store_true", help="begin a new run even if one is unfinished")
    parser.add_argument(
        "--once", action="store_true", help="fail where no broker answers, instead of waiting"
    )
    parser.add_argument(
        "--json", action="store_true", help="a JSON line for each run that ends: its folder and summary"
    )


def run(args: argparse.Namespace) -> int:
    """Run the coordinator until the run is over or a signal comes."""
    settings = flags.settings_of(
        args,
        coordinator__test_data=args.test_data,
        coordinator__state_dir=args.state_dir,
        coordinator__runs_dir=args.runs_dir,
        run__rounds=args.rounds,
        run__min_nodes=args.min_nodes,
        run__recipe=args.recipe,
        run__strategy=args.strategy,
        run__target_accuracy=args.target_accuracy,
        run__seed=args.seed,
    )
    tune()
    notifier = Notifier.from_environment(os.environ, time.monotonic)
    journal = Journal(settings.coordinator.state_dir)
    try:
        return _serve(args, settings, journal, notifier)
    finally:
        journal.close()
        notifier.close()


def _serve(args: argparse.Namespace, settings: Settings, journal: Journal, notifier: Notifier) -> int:
    if args.stay and args.run is not None:
        raise SettingsError("--run names one run; with --stay, apiary run start --name does")
    if args.run is not None:
        flags.name(args.run, "--run")
        known = journal.run(args.run)
        if known is not None and known.state == "finished":
            log.info("run=%s is finished", known.id)
            return _tell_again(settings.coordinator.runs_dir / known.id, as_json=args.json)
    blobs = BlobStore(settings.coordinator.state_dir / "blobs")
    if args.stay:
        _check_to_stay(args, settings, journal)
    assignment = None if args.stay else _one_run(args, settings, journal, blobs)
    epoch = secrets.token_hex(4)
    marks = settings.coordinator.state_dir / "marks.sqlite"
    gate = load_gate(settings.security, Role.COORDINATOR, None, marks, time.time)
    if gate is OPEN:
        log.info(
            "messages are not signed (security.ca is not set): whoever may write to the broker is believed"
        )
    bus = MqttBus(
        settings.broker,
        client_id=passing_id(f"{settings.federation}-coordinator"),
        will=will(settings.topics, epoch),
    )
    # Without a terminal the log tells all; with one the table does, and the log only what is wrong.
    quiet = not sys.stderr.isatty()
    title = f"{assignment.run if assignment else settings.federation}   "
    with LiveView(RunView(), title=title, quiet=quiet) as live, stop_on_signals(bus.wake) as stop:
        if live.redraws:
            log_through(live.say)
        coordinator = Coordinator(
            settings,
            bus=bus,
            journal=journal,
            blobs=blobs,
            worker=ThreadWorker("worker", bus.wake),
            clock=time.monotonic,
            wall=time.time,
            epoch=epoch,
            stay=args.stay,
            tap=live.tap,
            features=partial(features, workshops=KerasModelBuilder if args.stay else None),
            gate=gate,
            inspect=partial(_after, settings=settings, stop=stop),
            ended=partial(_over, as_json=args.json),
        )
        try:
            limits = FirstConnection(bus).wait(settings.broker.connect_timeout_s, stop) if args.once else None
            if limits is not None:
                coordinator.connected(limits)
            coordinator.start()
            if assignment is not None:
                coordinator.begin(assignment)
            notifier.ready(_doing(coordinator))
            coordinator.run(stop, lambda: notifier.turned(_doing(coordinator)))
        finally:
            notifier.stopping()
            coordinator.close()
    if stop() or coordinator.course is None:
        course = coordinator.course
        if course is not None and course.stage != "done":
            log.info("run=%s stopped; the same command goes on with it", course.run)
        return stop.exit_code
    if not coordinator.course.summary:
        record = coordinator.course.record
        raise RunFailed(f"run {record.run} ended without a model: {record.stop}")
    _over(coordinator.course, as_json=args.json)
    return 0


def _check_to_stay(args: argparse.Namespace, settings: Settings, journal: Journal) -> None:
    """What every run will need; the run that was under way is taken up by the feature that begins them."""
    strategy(settings)
    try:
        held_out_labels(settings)
    except DataError as e:
        log.warning("no run can begin yet: %s", e)
    row = journal.active_run()
    if row is not None and args.new:
        _leave_behind(journal, row)


def _one_run(args: argparse.Namespace, settings: Settings, journal: Journal, blobs: BlobStore) -> Assignment:
    row = _take_up(journal, args.run, new=args.new)
    if row is not None:
        settings = settings.model_copy(update={"run": _settings_of(row, settings)})
    strategy(settings)
    workshop = KerasModelBuilder(settings, blobs)
    if row is None:
        held_out_labels(settings)
        row = _begin(journal, settings, args.run)
    artefacts = ExportedModel.model_validate_json(row.artefacts) if row.artefacts else None
    return Assignment(row.id, row.created, settings, workshop, artefacts, row.stop)


def _over(course: Run, *, as_json: bool) -> None:
    if course.summary:
        _tell(course.record.folder, course.summary, as_json=as_json)
    else:
        log.warning("run=%s ended without a model: %s", course.run, course.record.stop)


def _doing(coordinator: Coordinator) -> str:
    """What the coordinator is at, in a line."""
    if coordinator.course is None:
        return "waiting for a run"
    live = coordinator.course.live
    number = f" {live.round.number}, {live.round.phase.value}" if live is not None else ""
    return f"{coordinator.course.stage}{number}, run {coordinator.course.run}"


def _after(folder: Path, *, settings: Settings, stop: Callable[[], bool]) -> None:
    """What follows a run, on the worker's thread: neither may fail it."""
    _report(folder)
    publish_after_run(folder, settings, stop)


def _report(folder: Path, limit_s: float = _REPORT_S) -> None:
    """Draw the report in a child: its plotting library would stay in the coordinator's memory."""
    child = [sys.executable, "-m", "apiary_coordinator.report", str(folder)]
    try:
        done = subprocess.run(
            child,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            # Its own group: Ctrl-C is for the coordinator, which finishes what it has begun.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except subprocess.TimeoutExpired:
        log.warning("the report could not be drawn within %.0f s: %s holds its numbers", limit_s, folder)
    except OSError as e:
        log.warning("the report could not be drawn: %s", e)
    else:
        if done.returncode != 0:
            log.warning("the report could not be drawn: %s", done.stderr.strip()[-500:])


def _take_up(journal: Journal, wanted: str | None, *, new: bool) -> RunRow | None:
    row = journal.active_run()
    if row is not None and (new or wanted not in (None, row.id)):
        _leave_behind(journal, row)
        return None
    if row is not None:
        log.info("run=%s goes on where it stopped, with the settings it began with", row.id)
    return row


def _leave_behind(journal: Journal, row: RunRow) -> None:
    log.info("run=%s is left behind unfinished", row.id)
    journal.end_run(row.id, "abandoned", "left behind for another run")


def _settings_of(row: RunRow, settings: Settings) -> RunSettings:
    stored = RunSettings.model_validate_json(row.settings)
    if stored != settings.run:
        log.warning("run=%s keeps its own [run] settings; --new begins a run with those given now", row.id)
    return stored


def _begin(journal: Journal, settings: Settings, wanted: str | None) -> RunRow:
    created = time.time()
    run = wanted or fresh_name(created)
    if journal.run(run) is not None or (settings.coordinator.runs_dir / run).exists():
        raise SettingsError(
            f"there is a run {run!r} already, in {settings.coordinator.runs_dir} or the journal: "
            "give another --run"
        )
    journal.open_run(run, created, settings.run.model_dump_json())
    return RunRow(run, created, settings.run.model_dump_json(), None, "active", None)


def _tell_again(folder: Path, *, as_json: bool) -> int:
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as e:
        raise StoreError(f"run {folder.name} is finished, but its summary cannot be read: {e}") from None
    _tell(folder, summary, as_json=as_json)
    return 0


def _tell(folder: Path, summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(folder), "summary": summary}))
        return
    accuracy = summary.get("best_accuracy") or 0.0
    print(
        f"{summary['stop']}: best accuracy {accuracy:.1%} in round {summary['best_round']}", file=sys.stderr
    )
    print(f"result: {folder}/report.html", file=sys.stderr)
