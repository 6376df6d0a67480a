"""Facial expressions on seven nodes by `vgg_bn`, against one place that has all pictures; in both runtimes.

    python -m benchmarks.learning.faces --data DIR               5.1 million weights: a day on two cores
    python -m benchmarks.learning.faces --data DIR --short       a narrow one on 2,800 pictures: half an hour
    python -m benchmarks.learning.faces --node                   memory and time of one node's round

DIR/fer2013 holds the pictures (datasets/fer2013.toml). Plain SGD at .02, batches of 32, an epoch a round,
stopped early by `run.patience`; the central line is the same run with all pictures on one node, which is SGD
in one place. Runs are simulated (docs/simulation.md), one process each, and kept in --out as they end: the
same command goes on with what is missing. Exit code 1 where seven nodes end more than three points below.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from benchmarks.measuring.printing import say
from benchmarks.round.room import Case, exported, measured

from apiary.learn import runtimes
from apiary.process.allocator import tune
from apiary_cli.commands.study import Study
from apiary_cli.simulation.setup import settings_for, with_min_nodes
from apiary_cli.study.plan import Cell, StudyFile, StudyPlan, identity, plan_of
from apiary_cli.study.results import ResultsFile, RunResult
from apiary_cli.terminal import logs
from apiary_cli.terminal.stopping import stop_on_signals

NODES: Final = 7
WITHIN: Final = 0.03
NARROW: Final[dict[str, Any]] = {"widths": [16, 32, 64, 128], "hidden": [256]}
CASES: Final = ("central", "nodes")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with fer2013")
    parser.add_argument("--out", type=Path, default=Path("studies/faces"), help="where runs are kept")
    parser.add_argument("--short", action="store_true", help="narrow, 2,800 pictures, 12 rounds, a seed")
    parser.add_argument("--runtimes", nargs="*", default=["litert", "keras"], help="which are tried")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--seeds", type=int, help="0 to N - 1 (3; short: 1)")
    parser.add_argument("--rounds", type=int, help="at most (40; short: 12)")
    parser.add_argument("--alpha", type=float, help="unlike nodes, by Dirichlet; without it alike ones")
    parser.add_argument("--limit", type=int, help="pictures (all; short: 2,800)")
    parser.add_argument("--node", action="store_true", help="what a node's round takes, and no run")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    if args.node:
        return _node(as_json=args.json)
    if args.data is None:
        parser.error("--data names the folder with fer2013")
    tune()
    logs.warnings_only()
    rows = []
    for runtime in args.runtimes:
        found = runs(args, runtime)
        if found is None:
            return 130
        rows += [(runtime, row) for row in found]
    return _report(rows, as_json=args.json)


def study(args: argparse.Namespace) -> StudyPlan:
    """The runs of one runtime: both cases, each seed."""
    options = NARROW if args.short else {}
    shares = {"by": "iid"} if args.alpha is None else {"by": "dirichlet", "alpha": args.alpha}
    nodes = {"central": 1, "nodes": NODES}
    return plan_of(
        StudyFile.model_validate(
            {
                "source": "fer2013",
                "data": args.data / "fer2013",
                "limit": args.limit or (2800 if args.short else None),
                "seeds": list(range(args.seeds or (1 if args.short else 3))),
                "baseline": {"case": args.cases[0]},
                "shares": shares,
                "settings": {
                    "run.recipe": "vgg_bn",
                    "run.recipe_options": options,
                    "run.rounds": args.rounds or (12 if args.short else 40),
                    "run.patience": 8,
                    "run.plan.optimizer": "sgd",
                    "run.plan.momentum": 0.0,
                    "run.plan.learning_rate": 0.02,
                    "run.plan.batch_size": 32,
                    "run.plan.epochs": 1,
                    "run.plan.flip": True,
                    "run.plan.validation_share": 0.0,
                },
                "case": {case: {"shares.nodes": nodes[case]} for case in args.cases},
            }
        )
    )


def runs(args: argparse.Namespace, runtime: str) -> list[RunResult] | None:
    """Make the runs that are missing; None where it was stopped."""
    plan, folder = study(args), args.out / runtime
    folder.mkdir(parents=True, exist_ok=True)
    settings = [_settings(cell, plan, folder) for cell in plan.cells]
    ids = [identity(cell, plan.file, made) for cell, made in zip(plan.cells, settings, strict=True)]
    done = ResultsFile(folder).read()
    todo = [
        (cell, made, i)
        for cell, made, i in zip(plan.cells, settings, ids, strict=True)
        if i not in done or done[i].error is not None
    ]
    with stop_on_signals() as stop:
        # In this process: several take the lightest runtime, whichever is wanted here.
        Study(plan, folder, 1, stop, runtime=runtimes.choose(runtime)).run(todo)
        if stop():
            return None
    found = ResultsFile(folder).read()
    return [found[i] for i in ids if i in found]


def _settings(cell: Cell, plan: StudyPlan, folder: Path) -> Any:
    given = {**cell.overrides, "run.seed": cell.seed, "coordinator.runs_dir": folder / "runs"}
    return with_min_nodes(settings_for(None, given, plan.file.source), cell.sharing.nodes)


def _report(rows: list[tuple[str, RunResult]], *, as_json: bool) -> int:
    best: dict[tuple[str, str], list[float]] = {}
    for runtime, row in rows:
        case = dict(row.axes)["case"]
        curve = " ".join(f"{100 * accuracy:.1f}" for _, accuracy in row.curve[1:])
        say(f"{runtime:7} {case:8} seed {row.seed}: {row.error or curve}")
        if row.best is not None:
            best.setdefault((runtime, case), []).append(row.best)
    say(f"{'best round, %':16}" + "".join(f"{case:>10}" for case in CASES))
    fits = all(row.error is None for _, row in rows)
    for runtime in dict.fromkeys(runtime for runtime, _ in rows):
        means = {case: fmean(best[runtime, case]) for case in CASES if (runtime, case) in best}
        say(f"{runtime:16}" + "".join(f"{100 * means[case]:10.1f}" for case in means))
        if len(means) == len(CASES):
            fits = fits and means["nodes"] >= means["central"] - WITHIN
    if as_json:
        print(json.dumps([{"runtime": runtime, **row.model_dump()} for runtime, row in rows]))
    return 0 if fits else 1


def _node(*, as_json: bool) -> int:
    cases = [Case("vgg_bn", {}, batch, 64, "sgd") for batch in (32, 8)]
    with tempfile.TemporaryDirectory(prefix="apiary-bench-") as scratch:
        folder = Path(scratch)
        rows = [measured(case, exported(case, folder / "exports"), folder) for case in cases]
    for row in rows:
        figures = ", ".join(f"{name} {row[name] / 1e6:.0f} MB" for name in ("resident", "expected"))
        say(f"{row['case']}: {figures}, {row['cpu_s']:.1f} s of processor")
    if as_json:
        print(json.dumps(rows))
    return 0 if all(row["resident"] <= row["expected"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
