"""The `apiary chaos` command: one undisturbed run, one disturbed run of the same, and what must be equal."""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from apiary.bus.broker import find_mosquitto
from apiary.errors import BusError, DataError
from apiary_cli.chaos import schedule
from apiary_cli.chaos.experiment import Experiment, FaultOptions
from apiary_cli.chaos.invariants import InvariantResult
from apiary_cli.chaos.states import rows
from apiary_cli.demo.federation import fresh_folder
from apiary_cli.terminal.stopping import stop_on_signals

EXAMPLES = """examples:
  apiary chaos                                     60 faults, three nodes
  apiary chaos --faults 200 --seed 7
  apiary chaos --kinds node-kill,link-reset --faults 30
  apiary chaos --keep --json                       keep folders and logs, end with one JSON line

kinds of faults:
""" + "\n".join(f"  {name:18}{kind.what}" for name, kind in schedule.KINDS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Run a real federation on this machine twice, undisturbed and under a seeded schedule of faults, and "
        "check that nothing was lost, nothing counted twice, and the model is the same bit by bit."
    )
    parser.add_argument("--faults", type=int, default=60, metavar="N", help="how many (default: 60)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same faults (default: 0)"
    )
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="how many nodes (default: 3)")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: one for every ten faults")
    parser.add_argument("--kinds", metavar="A,B,...", help="only these kinds of faults (default: all)")
    parser.add_argument(
        "--export",
        action="store_true",
        help="let the disturbed run export its model itself, so that this is disturbed too",
    )
    parser.add_argument(
        "--every-transition",
        action="store_true",
        help="fail where no fault fell into one of the transitions of a round or of a node's part in it",
    )
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where the folders go"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folders and logs")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")


def run(args: argparse.Namespace) -> int:
    """Both runs and the comparison; 0 where everything holds, 1 where something does not."""
    for flag, value, most in (("--faults", args.faults, 5000), ("--nodes", args.nodes, 50)):
        if not 1 <= value <= most:
            raise DataError(f"{flag} {value}: expected 1 to {most}")
    if args.rounds is not None and not 2 <= args.rounds <= 1000:
        raise DataError(f"--rounds {args.rounds}: expected 2 to 1000")
    kinds = schedule.chosen(args.kinds)
    if find_mosquitto() is None:
        raise BusError(
            "mosquitto is not installed: `sudo apt install mosquitto`; chaos needs a broker with a database"
        )
    folder = fresh_folder(args.runs_dir, "chaos").resolve()
    holds = False
    with stop_on_signals() as stop:
        experiment = Experiment(
            folder=folder,
            exports_dir=args.runs_dir / ".exports",
            rounds=args.rounds or schedule.rounds_for(args.faults),
            faults=FaultOptions(args.faults, args.seed, kinds, args.export, args.every_transition),
            say=_say,
            stop=stop,
        )
        try:
            results = experiment.run(args.nodes)
            if results is None:
                return stop.exit_code
            holds = all(result.holds for result in results)
            _report(args, experiment, results)
            return 0 if holds else 1
        finally:
            experiment.close()
            if args.keep or not holds:
                _say(f"folders and logs: {folder}")
            if not args.keep and (holds or not any(folder.glob("*/*.log"))):
                shutil.rmtree(folder, ignore_errors=True)


def _report(args: argparse.Namespace, experiment: Experiment, results: list[InvariantResult]) -> None:
    injected = experiment.injected
    if args.json:
        report = {
            "holds": all(result.holds for result in results),
            "seed": args.seed,
            "nodes": args.nodes,
            "rounds": experiment.rounds,
            "seconds": {k: round(v, 1) for k, v in experiment.seconds.items()},
            "faults": dict(sorted(injected.items())),
            "aimed": experiment.aimed,
            "transitions": _transitions(experiment),
            "invariants": [asdict(result) for result in results],
        }
        print(json.dumps(report))
        return
    print("\nfaults")
    for name in schedule.KINDS:
        if injected[name]:
            print(f"  {injected[name]:>4}  {name:18}{schedule.KINDS[name].what}")
    took = experiment.seconds["disturbed"]
    print(f"  {injected.total():>4}  in {took:.0f} s and {experiment.rounds} rounds, seed {args.seed}")
    print("\nfaults that fell between two states (of a round, of a node's part in it)")
    for name, count in _transitions(experiment).items():
        print(f"  {count:>4}  {name}")
    if experiment.aimed:
        print(f"  {experiment.aimed:>4}  faults more were aimed at those that had none")
    print("\ninvariants")
    for result in results:
        print(f"  {'holds ' if result.holds else 'BROKEN'}  {result.name}: {result.seen}")


def _transitions(experiment: Experiment) -> dict[str, int]:
    """Faults by transition, those that every run must go through first."""
    states = experiment.states
    if states is None:
        return {}
    found = [*rows(), *sorted(row for row in states.hit if row not in rows() and states.hit[row])]
    return {
        f"{table}: {before} to {after}": states.hit[table, before, after] for table, before, after in found
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
