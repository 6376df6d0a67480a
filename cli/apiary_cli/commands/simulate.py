"""`apiary simulate`: a run of a fleet of up to thousands of nodes in one process, on a virtual clock."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from apiary.errors import DataError, RunFailed, SettingsError
from apiary.learn.partition import KINDS
from apiary.process.allocator import tune
from apiary.wire import NodeId
from apiary.wire.messages import Message, RoundResult
from apiary.wire.messages.base import first_error
from apiary.wire.topics import TopicKind
from apiary_cli.datasets.partition import read_layout
from apiary_cli.demo.federation import fresh_folder
from apiary_cli.simulation.fleet import MAX_NODES, FleetModel, FleetProfile, read_profile
from apiary_cli.simulation.setup import jobs_of, placed, scenario_of, settings_for
from apiary_cli.simulation.shares import Shares, Sharing, as_profiled, of_layout, open_pool, share_out
from apiary_cli.simulation.simulation import Simulated, check, simulate
from apiary_cli.terminal import flags
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_cli.terminal.table import duration
from apiary_coordinator.publishers._after_run import draw_report

EXAMPLES = """examples:
  apiary simulate digits --nodes 50 --alpha 0.3
  apiary simulate shares --set run.rounds=30                   as `apiary data partition` wrote them
  apiary simulate digits --nodes 10000 --each 20 --cohort 100  ten thousand nodes, a hundred drawn a round
  apiary simulate photos/ --nodes 200 --pace 0.05 --pace-spread 3 --up 2 --drop-out 0.1
  apiary simulate photos/ --profile fleet.json                 the nodes of a real fleet

Time and distance are simulated; coordinator, messages, chunks, codecs and training are the real ones. With
the same nodes, shares, seed and cohorts the model has the bits of the real federation. docs/simulation.md
"""
_FLEET: Final = (
    ("--start", "S", "start_s"),
    ("--pace", "S", "pace_s"),
    ("--pace-spread", "FACTOR", "pace_spread"),
    ("--up", "MBIT", "up_mbit"),
    ("--down", "MBIT", "down_mbit"),
    ("--link-spread", "FACTOR", "link_spread"),
    ("--latency", "S", "latency_s"),
    ("--drop-out", "SHARE", "drop_out"),
    ("--away", "S", "away_s"),
    ("--server", "S", "server_s"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Simulate a federation: the real coordinator and thousands of virtual nodes on a clock that jumps."
    )
    parser.add_argument(
        "source",
        help="a data set's name, a folder, an .npz, a CSV with pixels, or shares of `data partition`",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the named data set")
    parser.add_argument("--limit", type=int, metavar="N", help="take only N training pictures, by seed")
    sharing = parser.add_argument_group("shares (not for a folder of shares)")
    sharing.add_argument("--nodes", type=int, metavar="N", help="how many nodes (10)")
    sharing.add_argument(
        "--by", choices=KINDS, help="how they differ, as `apiary data partition` (dirichlet)"
    )
    sharing.add_argument("--alpha", type=float, help="dirichlet: smaller is less alike (.5)")
    sharing.add_argument("--shards", type=int, metavar="K", help="shards: runs for each node (2)")
    sharing.add_argument("--sigma", type=float, help="quantity: larger is less even (1)")
    sharing.add_argument(
        "--each", type=int, metavar="N", help="pictures on each node, drawn: one may be on several nodes"
    )
    fleet = parser.add_argument_group("paces and links")
    for flag, metavar, name in _FLEET:
        field = FleetModel.model_fields[name]
        text = f"{field.description} ({field.default:g})"
        fleet.add_argument(flag, type=float, metavar=metavar, dest=name, help=text)
    fleet.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="paces, links and, without --nodes, nodes and label counts",
    )
    run_ = parser.add_argument_group("run")
    run_.add_argument("--rounds", type=int, help="at most this many rounds")
    run_.add_argument("--cohort", type=int, metavar="N", help="nodes drawn each round (all)")
    run_.add_argument("--recipe", help="model recipe: edge_cnn, mobilenet_v2, maths_cnn, vgg_bn, char_rnn")
    run_.add_argument("--strategy", help="docs/strategies.md (fedavg)")
    run_.add_argument("--seed", type=int, help="of everything random: shares, paces, cohorts, training (0)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that train (as many as cores)")
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", help="where the result goes")
    parser.add_argument("--keep", action="store_true", help="keep the folder that it works in")
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON line: folder, summary, figures"
    )


def run(args: argparse.Namespace) -> int:
    """Simulate; 0 with a finished model. Raises ApiaryError."""
    overrides = flags.overrides_of(
        args,
        coordinator__runs_dir=args.runs_dir,
        run__rounds=args.rounds,
        run__cohort_size=args.cohort,
        run__recipe=args.recipe,
        run__strategy=args.strategy,
        run__seed=args.seed,
    )
    settings = settings_for(args.config, overrides, args.source)
    model = fleet_model({name: getattr(args, name) for _, _, name in _FLEET})
    profile = read_profile(args.profile) if args.profile is not None else None
    sharing = _sharing(args, settings.run.seed)
    jobs = jobs_of(args.jobs)
    folder = fresh_folder(settings.coordinator.runs_dir, "simulate")
    tune()
    try:
        with stop_on_signals() as stop:
            view = RoundLines(quiet=args.json)
            shares = _shares(args, sharing, profile, folder, settings.run.seed)
            scenario = scenario_of(shares, model, profile, settings, jobs)
            settings = placed(settings, scenario, folder)
            check(settings, scenario)
            view.say(
                f"{len(shares.names)} virtual nodes, {int(shares.counts.sum())} pictures; exporting the model"
            )
            result = simulate(settings, scenario, folder, tap=view.tap, stop=stop, after_run=draw_report)
        if result is None:
            return stop.exit_code
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    _report(result, as_json=args.json)
    return 0


def fleet_model(given: dict[str, Any]) -> FleetModel:
    """Paces and links; None means the default. Raises SettingsError."""
    try:
        return FleetModel.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as e:
        text = first_error(e)
        flag = next((flag for flag, _, name in _FLEET if text.startswith(name)), None)
        raise SettingsError(f"{flag}: {text}" if flag else text) from None


class RoundLines:
    """A line on standard error for each round."""

    def __init__(self, *, quiet: bool):
        self._quiet = quiet

    def say(self, line: str) -> None:
        """A line."""
        if not self._quiet:
            print(line, file=sys.stderr, flush=True)

    def tap(self, kind: TopicKind, node: NodeId | None, message: Message) -> None:
        """Show how a round ended."""
        match message:
            case RoundResult(state="closed"):
                self.say(
                    f"round {message.round}: accuracy {message.accuracy or 0:.1%}, "
                    f"loss {message.loss or 0:.4f}, {message.n_contributors} nodes, "
                    f"{duration(message.seconds)} virtual"
                )
            case RoundResult():
                self.say(f"round {message.round} failed: {message.why}")
            case _:
                pass


def _sharing(args: argparse.Namespace, seed: int) -> Sharing:
    given = {key: getattr(args, key) for key in ("nodes", "by", "alpha", "shards", "sigma", "each")}
    chosen = {key: value for key, value in given.items() if value is not None}
    sharing = Sharing(**{"nodes": 10, "seed": seed, **chosen})
    if not 1 <= sharing.nodes <= MAX_NODES:
        raise SettingsError(f"--nodes {sharing.nodes}: expected 1 to {MAX_NODES}")
    if sharing.each is not None and sharing.by not in ("iid", "dirichlet"):
        raise SettingsError(f"--each draws each node's pictures by iid or dirichlet, not by {sharing.by}")
    return sharing


def _shares(
    args: argparse.Namespace, sharing: Sharing, profile: FleetProfile | None, folder: Path, seed: int
) -> Shares:
    laid_out = Path(args.source)
    if laid_out.is_dir() and read_layout(laid_out) is not None:
        given = [key for key in ("nodes", "by", "alpha", "shards", "sigma", "each") if getattr(args, key)]
        if given:
            raise DataError(f"{laid_out} is shared out already: leave out --{', --'.join(given)}")
        return of_layout(laid_out)
    pool = open_pool(args.source, folder / "data", data_dir=args.data, seed=seed, limit=args.limit)
    if profile is not None and args.nodes is None:
        return as_profiled(pool, profile, seed)
    return share_out(pool, sharing)


def _report(result: Simulated, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps({"run": str(result.folder), "summary": result.summary, "simulation": result.figures})
        )
        return
    summary, figures = result.summary, result.figures
    if not summary:
        raise RunFailed("the simulation ended without a model")
    print(
        f"{summary['stop']}: best accuracy {summary.get('best_accuracy') or 0:.1%} in round "
        f"{summary['best_round']}; {duration(figures['virtual_s'])} of virtual time in "
        f"{duration(figures['real_s'])}, {figures['own_s']:.1f} s of it beside training and evaluation",
        file=sys.stderr,
    )
    print(f"result: {result.folder}/report.html", file=sys.stderr)
