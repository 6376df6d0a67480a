"""The `apiary chaos` command: one undisturbed run, one disturbed run of the same, and what must be equal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from apiary.bus.broker import find_mosquitto
from apiary.errors import BusError, DataError, RunFailed
from apiary.wire.topics import Topics
from apiary_cli.chaos import invariants, schedule
from apiary_cli.chaos.fault_injector import FaultInjector, OnFault
from apiary_cli.chaos.fleet import COORDINATOR, Fleet, remove
from apiary_cli.chaos.invariants import FinishedRun, InvariantResult
from apiary_cli.chaos.schedule import Fault
from apiary_cli.chaos.traffic_replayer import TrafficReplayer
from apiary_cli.datasets.partition import Layout, materialise
from apiary_cli.demo.federation import fresh_folder
from apiary_cli.terminal.stopping import StopSignal, stop_on_signals

EXAMPLES = """examples:
  apiary chaos                                     60 faults, three nodes
  apiary chaos --faults 200 --seed 7
  apiary chaos --kinds node-kill,link-reset --faults 30
  apiary chaos --keep --json                       keep folders and logs, end with one JSON line

kinds of faults:
""" + "\n".join(f"  {name:18}{kind.what}" for name, kind in schedule.KINDS.items())

PICTURES: Final = 360
"""Training pictures of all nodes together: an epoch takes tenths of a second."""
DRAIN_S: Final = 30.0
"""After the run's end, the nodes may take this long to empty their outboxes."""
STUCK_S: Final = 180.0
"""Without a fault or a new round for so long, the run hangs."""
_TURN_S: Final = 0.05


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
    schedule.chosen(args.kinds)
    if find_mosquitto() is None:
        raise BusError(
            "mosquitto is not installed: `sudo apt install mosquitto`; chaos needs a broker with a database"
        )
    rounds = args.rounds or schedule.rounds_for(args.faults)
    folder = fresh_folder(args.runs_dir, "chaos").resolve()
    fleets: list[Fleet] = []
    done = False
    try:
        with stop_on_signals() as stop:
            outcome = _both(args, rounds, folder, fleets, stop)
            if outcome is None:
                return stop.exit_code
        verdicts, dealt, seconds = outcome
        done = all(v.holds for v in verdicts)
        _report(args, verdicts, dealt, seconds, rounds)
        return 0 if done else 1
    finally:
        for fleet in fleets:
            fleet.close()
            fleet.end_left_running()
        if args.keep or not done:
            _say(f"folders and logs: {folder}")
        if not args.keep and (done or not any(folder.glob("*/*.log"))):
            remove(folder)


def _both(
    args: argparse.Namespace, rounds: int, folder: Path, fleets: list[Fleet], stop: StopSignal
) -> tuple[list[InvariantResult], Counter[str], dict[str, float]] | None:
    layout = materialise(
        "digits", folder / "data", nodes=args.nodes, by="dirichlet", alpha=2.0, seed=0, limit=PICTURES
    )
    seconds: dict[str, float] = {}
    _say(f"undisturbed run: {args.nodes} nodes, {rounds} rounds (the first export takes TensorFlow's time)")
    exports = args.runs_dir / ".exports"
    fleets.append(Fleet(folder / "calm", layout, _settings(args, layout, folder / "calm", rounds, exports)))
    began = time.monotonic()
    calm = _run(fleets[0], [], _quiet, stop)
    seconds["undisturbed"] = time.monotonic() - began
    if calm is None:
        return None
    if fleets[0].fell:
        raise RunFailed(f"the undisturbed run was not: {fleets[0].fell[0]}")
    _say(f"undisturbed: model {calm.summary['model_sha256'][:16]}, {seconds['undisturbed']:.0f} s")

    names = fleets[0].nodes
    kinds = schedule.chosen(args.kinds)
    plan = schedule.draw(
        seed=args.seed, faults=args.faults, rounds=rounds, nodes=names, kinds=kinds, building=args.export
    )
    _say(f"disturbed run: {len(plan)} faults, seed {args.seed}")
    exports = folder / "storm" / "exports" if args.export else exports
    settings = _settings(args, layout, folder / "storm", rounds, exports)
    storm_fleet = Fleet(folder / "storm", layout, settings)
    fleets.append(storm_fleet)
    began = time.monotonic()
    dealt: Counter[str] = Counter()

    def on_fault(count: int, number: int, fault: Fault, how: str) -> None:
        dealt[fault.kind] += 1
        at = time.monotonic() - began
        _say(
            f"[{count:>{len(str(len(plan)))}}/{len(plan)}] {at // 60:02.0f}:{at % 60:02.0f} "
            f"round {number:<3} {fault.kind:17} {fault.victim:12} {how}"
        )

    storm = _run(storm_fleet, plan, on_fault, stop)
    seconds["disturbed"] = time.monotonic() - began
    if storm is None:
        return None
    return _judge(calm, storm, fleets, dealt.total(), len(plan)), dealt, seconds


def _run(fleet: Fleet, plan: list[Fault], on_fault: OnFault, stop: StopSignal) -> FinishedRun | None:
    """One whole run; None where it was interrupted. Raises RunFailed where it does not end."""
    replayer: TrafficReplayer | None = None
    try:
        fleet.start()
        replayer = TrafficReplayer(fleet.port, Topics())
        injector = FaultInjector(plan, fleet, replayer, on_fault)
        result: dict[str, Any] | None = None
        mark, marked_at = (0, 0), time.monotonic()
        while (result := fleet.result) is None:
            if stop():
                return None
            if replayer.poll(_TURN_S):
                injector.moved()
            fleet.turn()
            injector.turn()
            if mark != (now := (replayer.round, injector.left)):
                mark, marked_at = now, time.monotonic()
            if time.monotonic() - marked_at > STUCK_S:
                raise RunFailed(
                    f"nothing went on for {STUCK_S:.0f} s in round {replayer.round}: logs in {fleet.folder}"
                )
        _drain(fleet, replayer, stop)
    finally:
        if replayer is not None:
            replayer.close()
        fleet.close()
    return invariants.read_record(fleet.folder, result["summary"], fleet.peaks_mb)


def _drain(fleet: Fleet, replayer: TrafficReplayer, stop: StopSignal) -> None:
    """Everybody is brought back, and has a moment to find out that the run is over."""
    fleet.settle()
    until = time.monotonic() + DRAIN_S
    while time.monotonic() < until and not stop():
        replayer.poll(_TURN_S)
        fleet.turn()
        waiting = any(invariants.outbox(fleet.state(node)) for node in fleet.nodes)
        if not waiting and all(map(fleet.up, fleet.nodes)):
            return


def _judge(
    calm: FinishedRun, storm: FinishedRun, fleets: list[Fleet], dealt: int, wanted: int
) -> list[InvariantResult]:
    undisturbed, fleet = fleets
    return [
        invariants.same_model(calm, storm),
        invariants.counted_once(calm, storm),
        invariants.journal_sound(fleet, storm),
        invariants.stores_sound(fleet, storm),
        invariants.result_whole(undisturbed, fleet),
        invariants.nothing_waits(fleet),
        invariants.nothing_half_written(fleet),
        invariants.nothing_running(fleet),
        invariants.no_crash(fleet),
        invariants.memory_bounded(calm, storm),
        invariants.all_dealt(dealt, wanted),
    ]


def _settings(
    args: argparse.Namespace, layout: Layout, folder: Path, rounds: int, exports: Path
) -> dict[str, dict[str, Any]]:
    return {
        # Impatient, so that a fault costs seconds: what is waited for is the same, only shorter.
        "broker": {"retry_max_s": 2.0, "keepalive_s": 5, "connect_timeout_s": 3.0},
        "run": {
            "rounds": rounds,
            "min_nodes": args.nodes,
            "settle_s": 0.5,
            # Nobody is left behind: the cohort stays the same, so the bits must.
            "deadline_s": 3600.0,
            "lost_grace_s": 3600.0,
            "quorum": 1.0,
            "recipe_options": {"size": 16, "channels": 1, "widths": [16, 32, 64, 96]},
        },
        "run.plan": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003, "shift": 0.07},
        "coordinator": {
            "test_data": layout.server.resolve(),
            "labels": layout.labels,
            "state_dir": folder / "state" / COORDINATOR,
            "exports_dir": exports.resolve(),
            "runs_dir": folder / "runs",
            "upload_idle_s": 2.0,
        },
        "edge": {"upload_idle_s": 2.0, "want_idle_s": 1.5, "refresh_s": 10.0},
    }


def _report(
    args: argparse.Namespace,
    verdicts: list[InvariantResult],
    dealt: Counter[str],
    seconds: dict[str, float],
    rounds: int,
) -> None:
    if args.json:
        result = {
            "holds": all(v.holds for v in verdicts),
            "seed": args.seed,
            "nodes": args.nodes,
            "rounds": rounds,
            "seconds": {k: round(v, 1) for k, v in seconds.items()},
            "faults": dict(sorted(dealt.items())),
            "invariants": [asdict(v) for v in verdicts],
        }
        print(json.dumps(result))
        return
    print("\nfaults")
    for name in schedule.KINDS:
        if dealt[name]:
            print(f"  {dealt[name]:>4}  {name:18}{schedule.KINDS[name].what}")
    print(f"  {dealt.total():>4}  in {seconds['disturbed']:.0f} s and {rounds} rounds, seed {args.seed}")
    print("\ninvariants")
    for v in verdicts:
        print(f"  {'holds ' if v.holds else 'BROKEN'}  {v.name}: {v.seen}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet(count: int, number: int, fault: Fault, how: str) -> None:
    """An undisturbed run has no faults."""
