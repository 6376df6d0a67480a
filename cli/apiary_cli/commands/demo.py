"""`apiary demo`: a real federation on one machine, from a data set to a finished model."""

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from apiary import plugins
from apiary.bus.broker import BrokerProcess, start_broker
from apiary.errors import ApiaryError, DataError, RunFailed
from apiary.learn.manifest import read_input
from apiary.settings import BrokerSettings, load_settings
from apiary.wire.topics import Topics
from apiary_cli.client.watching import Watcher
from apiary_cli.datasets.partition import Layout, hardhat_layout, materialise
from apiary_cli.demo.federation import COORDINATOR, LocalFederation, fresh_folder
from apiary_cli.demo.presets import PRESETS, Preset
from apiary_cli.demo.release import RolloutFollower, settings_for, table_of
from apiary_cli.terminal.live import LiveView
from apiary_cli.terminal.stopping import StopSignal, stop_on_signals
from apiary_cli.terminal.view import RunView

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  apiary demo                                                 five nodes, handwritten digits, unlike shares
  apiary demo --dataset hardhat --data DIR                    hard hats on two nodes
  apiary demo --dataset cifar10 --data DIR --nodes 10 --alpha 0.1
  apiary demo --dataset names --data DIR                      surnames by language: texts, a recurrent network
  apiary demo --release                                       and the model goes back to the nodes, in waves
  apiary demo --json                                          end with one JSON line
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Run broker, coordinator and nodes as separate processes here, and train a model."
    parser.add_argument("--dataset", choices=sorted(PRESETS), default="digits", help="default: digits")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that holds the data set (not for digits)"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="how many nodes")
    parser.add_argument(
        "--alpha", type=float, help="Dirichlet parameter of the shares; smaller is less alike"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="at most this many rounds")
    parser.add_argument("--limit", type=int, metavar="N", help="take only N training pictures")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same model (default: 0)")
    parser.add_argument("--strategy", default="fedavg", help="docs/strategies.md (default: fedavg)")
    parser.add_argument(
        "--amqtt", action="store_true", help="use the embedded broker even if mosquitto is there"
    )
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where the result goes"
    )
    parser.add_argument(
        "--release",
        action="store_true",
        help="then roll the model out to the nodes; as a program (.eim) where EI_API_KEY is set",
    )
    parser.add_argument("--keep", action="store_true", help="keep the nodes' folders and logs")
    parser.add_argument(
        "--json", action="store_true", help="end with one JSON line: the run's folder and summary"
    )


def run(args: argparse.Namespace) -> int:
    """Run the federation; 0 with a finished model."""
    if args.nodes is not None and not 1 <= args.nodes <= 200:
        raise DataError(f"--nodes {args.nodes}: expected 1 to 200 on one machine")
    for flag, value in (("--rounds", args.rounds), ("--limit", args.limit)):
        if value is not None and value < 1:
            raise DataError(f"{flag} {value}: expected 1 or more")
    if args.dataset == "hardhat" and args.data is None:
        raise DataError("--dataset hardhat needs --data DIR, the folder that holds dataset_client1 ...")
    plugins.load("apiary_coordinator.strategies", args.strategy)
    preset = PRESETS[args.dataset]
    began = time.monotonic()
    folder = fresh_folder(args.runs_dir, "demo")
    failed = True
    try:
        with (
            LiveView(RunView(), quiet=args.json and not sys.stderr.isatty()) as live,
            stop_on_signals() as stop,
        ):
            layout = _layout(args, preset, folder, live)
            with start_broker(
                0, state_dir=folder / "broker", prefer="amqtt" if args.amqtt else "auto", say=live.say
            ) as broker:
                live.say(f"broker: {broker.kind} on port {broker.port}; watch it with")
                live.say(f"  mosquitto_sub -p {broker.port} -v -t 'apiary/#'")
                # The user's own settings win over the demo's; unknown ones are refused here, not in a
                # child's log.
                load_settings(args.config, args.overrides)
                federation = LocalFederation(folder, _settings(args, preset, folder, layout, broker))
                with contextlib.closing(Watcher(BrokerSettings(**_reach(broker)), Topics())) as watcher:
                    result = _federate(args, layout, federation, watcher, live=live, stop=stop)
        failed = False
        if result is None:
            return stop.exit_code
    except ApiaryError as e:
        if not list(folder.glob("*.log")):
            raise
        raise type(e)(f"{e}\nlogs: {folder}/*.log") from None
    except KeyboardInterrupt:
        failed = False
        raise
    finally:
        if not args.keep and not (failed and list(folder.glob("*.log"))):
            shutil.rmtree(folder, ignore_errors=True)
    _report(result, time.monotonic() - began, as_json=args.json)
    return 0


def _layout(args: argparse.Namespace, preset: Preset, folder: Path, live: LiveView) -> Layout:
    if args.dataset == "hardhat" and args.nodes is None:
        return hardhat_layout(args.data, folder / "data")
    live.say(f"sharing out {args.dataset} among {args.nodes or preset.nodes} nodes")
    return materialise(
        args.dataset,
        folder / "data",
        nodes=args.nodes or preset.nodes,
        by="dirichlet",
        alpha=args.alpha if args.alpha is not None else preset.alpha,
        seed=args.seed,
        limit=args.limit or preset.limit,
        data_dir=args.data,
    )


def _federate(
    args: argparse.Namespace,
    layout: Layout,
    federation: LocalFederation,
    watcher: Watcher,
    *,
    live: LiveView,
    stop: StopSignal,
) -> dict[str, Any] | None:
    flags = [flag for pair in args.set for flag in ("--set", pair)]
    try:
        live.say("exporting the model for the nodes (TensorFlow, once)")
        federation.start_coordinator("--new", *flags)
        for data in layout.nodes:
            federation.start_node(data.name, data, *flags)
        while not stop():
            for seen in watcher.poll(0.2):
                live.tap(*seen)
            federation.check()
            result: dict[str, Any] | None = federation.result()
            if result is not None:
                if args.release:
                    result["release"] = _release(federation, flags, live=live, stop=stop)
                return result
            coordinator = federation.parties[COORDINATOR]
            if coordinator.code is not None:
                raise RunFailed(f"the coordinator said nothing at its end:\n{coordinator.tail()}")
        return None
    finally:
        federation.stop()


def _release(
    federation: LocalFederation, flags: list[str], *, live: LiveView, stop: StopSignal
) -> dict[str, Any]:
    """The coordinator comes back to stay, and takes up the release that it journaled at its end."""
    live.say("the model goes to the nodes")
    federation.start_coordinator("--stay", *flags)
    settings = load_settings(federation.settings_file).settings
    result = RolloutFollower(settings, federation, live.say, stop).until_over()
    for line in table_of(result):
        live.say(line)
    return result


def _settings(
    args: argparse.Namespace, preset: Preset, folder: Path, layout: Layout, broker: BrokerProcess
) -> dict[str, dict[str, Any]]:
    return {
        **(settings_for(folder) if args.release else {}),
        "broker": _reach(broker),
        "run": {
            "rounds": args.rounds or preset.rounds,
            "target_accuracy": preset.target,
            "min_nodes": len(layout.nodes),
            "seed": args.seed,
            "strategy": args.strategy,
            "recipe_options": preset.recipe_options,
            **preset.run,
        },
        "run.plan": preset.plan,
        "coordinator": {
            "test_data": layout.server.resolve(),
            "labels": layout.labels,
            "state_dir": (folder / "state" / "coordinator").resolve(),
            "exports_dir": (args.runs_dir / ".exports").resolve(),
            "runs_dir": args.runs_dir,
        },
        "edge": {"upload_idle_s": 5.0, "want_idle_s": 3.0},
    }


def _reach(broker: BrokerProcess) -> dict[str, Any]:
    """`[broker]` for it. amqtt's protocol was reported when it started: not once more at every connect."""
    protocol = "3.1.1" if broker.kind == "amqtt" else "auto"
    return {"host": broker.host, "port": broker.port, "protocol": protocol}


def _report(result: dict[str, Any], seconds: float, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    summary, run = result["summary"], result["run"]
    texts = (found := read_input(Path(run))) is not None and found.letters
    print(f"\n{summary['stop']} ({seconds:.0f} s)")
    print(f"  accuracy  {summary['best_accuracy']:.1%} on held-out pictures, round {summary['best_round']}")
    print(f"            {summary['int8_accuracy']:.1%} as int8")
    print(f"  nodes     {summary['nodes']}; their pictures stayed where they are")
    print(f"  traffic   {summary['bytes_down'] / 1e6:.1f} MB down, {summary['bytes_up'] / 1e6:.1f} MB up")
    print(f"  report    {run}/report.html")
    sample = "--text TEXT" if texts else "PICTURE..."
    print(f"  try it    {_command()} predict {run} {sample}")


def _command() -> str:
    """How to type this program's name here: its environment need not be activated."""
    if shutil.which("apiary"):
        return "apiary"
    program = os.path.relpath(sys.argv[0])
    return f"{sys.executable} -m apiary_cli" if program.endswith("__main__.py") else program
