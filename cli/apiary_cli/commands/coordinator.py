"""`apiary coordinator`: one run, or with `--stay` one after another; an unfinished one is taken up again."""

import argparse
import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from apiary.blobs import BlobStore
from apiary.errors import RunFailed, SettingsError, StoreError
from apiary.notify import Notifier
from apiary.process.allocator import tune
from apiary.settings import Settings
from apiary_cli.terminal import flags
from apiary_cli.terminal.live import LiveView, log_through
from apiary_cli.terminal.once import first_connection
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_cli.terminal.view import RunView
from apiary_coordinator import app
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.keras import KerasModelBuilder
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.publishers._after_run import after_run
from apiary_coordinator.resources import Storage
from apiary_coordinator.run.host import RunHost
from apiary_coordinator.run.run import Run
from apiary_coordinator.schedule.opening import check_to_stay, one_run

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  apiary coordinator --test-data held-out --rounds 10 --min-nodes 2
  apiary coordinator --config apiary.toml --json
  apiary coordinator --test-data held-out --new        leave an unfinished run behind
  apiary coordinator --test-data held-out --run autumn
  apiary coordinator --test-data held-out --start-from latest
  apiary coordinator --stay                            runs by `apiary run start` or [schedule], until stopped

Without --stay the coordinator exits when the run is over. Stopped before, it goes on with the same command.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Open rounds, aggregate and evaluate until the run is over; write its result to runs/RUN."
    )
    parser.add_argument("--test-data", type=Path, metavar="DIR", help="held-out pictures: docs/folders.md")
    parser.add_argument("--rounds", type=int, help="at most this many rounds")
    parser.add_argument("--min-nodes", type=int, metavar="N", help="wait for this many nodes")
    parser.add_argument("--recipe", help="model recipe: edge_cnn, mobilenet_v2, maths_cnn, vgg_bn, char_rnn")
    parser.add_argument("--strategy", help="how updates become the next model: docs/strategies.md")
    parser.add_argument(
        "--start-from", metavar="MODEL", help="begin with: latest, a run, a .keras file, or scratch"
    )
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
        run__start_from=args.start_from,
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
            return _print_finished(settings.coordinator.runs_dir / known.id, as_json=args.json)
    storage = Storage(journal, BlobStore(settings.coordinator.state_dir / "blobs"))
    one = None
    if args.stay:
        check_to_stay(settings, storage, new=args.new)
    else:
        one = one_run(settings, storage, KerasModelBuilder, name=args.run, new=args.new)
    # Without a terminal the log shows all; with one the table does, and the log only what is wrong.
    quiet = not sys.stderr.isatty()
    live = LiveView(RunView(), title=f"{one.id if one else settings.federation}   ", quiet=quiet)
    platform = app.platform(settings, live.tap)
    with live, stop_on_signals(platform.bus.wake) as stop:
        if live.redraws:
            log_through(live.say)
        coordinator = app.build(
            settings,
            platform,
            storage,
            one=one,
            after_run=partial(after_run, settings=settings, stop=stop),
            ended=partial(_print_ended, as_json=args.json),
        )
        try:
            timeout_s = settings.broker.connect_timeout_s
            limits = first_connection(platform.bus, timeout_s, stop) if args.once else None
            if limits is not None:
                coordinator.connected(limits)
            coordinator.start()
            notifier.ready(_doing(coordinator.host))
            coordinator.run(stop, lambda: notifier.turned(_doing(coordinator.host)))
        finally:
            notifier.stopping()
            coordinator.close()
    run = coordinator.host.current
    if stop() or run is None:
        if run is not None and run.stage != "done":
            log.info("run=%s stopped; the same command goes on with it", run.name)
        return stop.exit_code
    if not run.summary:
        raise RunFailed(f"run {run.name} ended without a model: {run.history.stop}")
    _print_ended(run, as_json=args.json)
    return 0


def _print_ended(run: Run, *, as_json: bool) -> None:
    if run.summary:
        _print_summary(run.history.folder, run.summary, as_json=as_json)
    else:
        log.warning("run=%s ended without a model: %s", run.name, run.history.stop)


def _doing(host: RunHost) -> str:
    """What the coordinator is at, in a line."""
    if host.current is None:
        return "waiting for a run"
    round_ = host.runner.round if host.runner is not None else None
    number = f" {round_.number}, {round_.phase.value}" if round_ is not None else ""
    return f"{host.current.stage}{number}, run {host.current.name}"


def _print_finished(folder: Path, *, as_json: bool) -> int:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise StoreError(f"run {folder.name} is finished, but its summary cannot be read: {e}") from None
    _print_summary(folder, summary, as_json=as_json)
    return 0


def _print_summary(folder: Path, summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(folder), "summary": summary}))
        return
    accuracy = summary.get("best_accuracy") or 0.0
    print(
        f"{summary['stop']}: best accuracy {accuracy:.1%} in round {summary['best_round']}", file=sys.stderr
    )
    if isinstance(ancestor := summary.get("ancestor"), dict):
        began = Ancestor.model_validate(ancestor)
        share = f", {began.accuracy_here:.1%} here" if began.accuracy_here is not None else ""
        print(f"it began with the model of {began.name}{share}", file=sys.stderr)
    print(f"result: {folder}/report.html", file=sys.stderr)
