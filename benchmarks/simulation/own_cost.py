"""What a simulation costs beside training: processor seconds and memory for ever more virtual nodes.

    python -m benchmarks.simulation.own_cost --nodes 1000 10000 --cohort 100 --rounds 3

The model is a softmax regression of 650 weights, so that nearly all that is measured is the simulation's own.
Times are of the processor, and hold on a busy machine. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.stand_ins.regression import PLAN, RegressionBuilder, RegressionRuntime

from apiary.settings import Settings
from apiary_cli.simulation.fleet import FleetModel, traits
from apiary_cli.simulation.shares import Sharing, open_pool, share_out
from apiary_cli.simulation.simulation import Scenario, simulate


def measure(nodes: int, cohort: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pool = open_pool("digits", folder / "data", data_dir=None, seed=0)
        shares = share_out(pool, Sharing(nodes, each=20))
        run = {"rounds": rounds, "cohort_size": cohort, "min_nodes": nodes, "plan": PLAN}
        settings = Settings.model_validate(
            {
                "run": run,
                "coordinator": {
                    "state_dir": folder / "state",
                    "runs_dir": folder / "runs",
                    "test_data": shares.test_data,
                    "labels": list(shares.labels),
                },
            }
        )
        model = FleetModel()
        scenario = Scenario(
            shares, tuple(traits(shares.names, model, seed=0)), model, 0, runtime=RegressionRuntime()
        )
        result = simulate(settings, scenario, folder, name="run", builders=RegressionBuilder)
    assert result is not None
    return result.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if len(args.nodes) > 1:  # a process each: the peak of memory is that of its life
        for nodes in args.nodes:
            flags = ["--nodes", str(nodes), "--cohort", str(args.cohort), "--rounds", str(args.rounds)]
            subprocess.run([sys.executable, "-m", "benchmarks.simulation.own_cost", *flags], check=True)
        return
    figures = measure(args.nodes[0], args.cohort, args.rounds)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    each_ms = 1000 * figures["own_s"] / args.nodes[0]
    print(
        f"{args.nodes[0]:6d} nodes, {args.cohort} of them drawn in each of {args.rounds} rounds: "
        f"{figures['own_s']:.1f} s of its own ({each_ms:.2f} ms a node, "
        f"{each_ms / args.rounds:.2f} a node and round), {peak_mb:.0f} MB, "
        f"{figures['virtual_s']:.0f} virtual seconds in {figures['real_s']:.0f}"
    )


if __name__ == "__main__":
    main()
