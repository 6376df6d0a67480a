"""Does a second run on more pictures begin where the first ended, and end above it? Digits, four nodes.

    python -m benchmarks.learning.second_run              three seeds, about six minutes on two quiet cores
    python -m benchmarks.learning.second_run --seeds 0 --rounds 4

Each node trains on a third of its pictures first; the second run begins with the best model of the first, and
its nodes have all of theirs. The held-out pictures are the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring.printing import say

NODES = 4
DEMOS = (
    "run.recipe_options={size=16, channels=1, widths=[16, 32, 48]}",
    "run.plan.epochs=8", "run.plan.batch_size=16", "run.plan.learning_rate=0.003", "run.plan.shift=0.07",
)  # fmt: skip
"""As `apiary demo` trains digits."""


def apiary(folder: Path, *words: str) -> None:
    """Run a command there. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "apiary_cli", *words], cwd=folder, check=True, capture_output=True)


def a_third(shares: Path, out: Path) -> None:
    """The same nodes with every third picture, and all that is held out."""
    shutil.copytree(shares, out)
    for label in (p for node in out.glob("node-*") for p in node.iterdir()):
        for i, picture in enumerate(sorted(label.iterdir())):
            if i % 3:
                picture.unlink()


def simulate(folder: Path, shares: str, rounds: int, seed: int, *more: str) -> tuple[Path, dict[str, Any]]:
    """The newest run's folder and its summary."""
    apiary(folder, "simulate", shares, "--seed", str(seed), "--set", f"run.rounds={rounds}", *more)
    newest = max((folder / "runs").iterdir(), key=lambda p: p.stat().st_mtime)
    return newest, json.loads((newest / "summary.json").read_text())


def main() -> None:
    """Print a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    say("seed   first ended   second began   second ended   %")
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            kind = ["--nodes", str(NODES), "--by", "dirichlet", "--alpha", "0.5", "--seed", str(seed)]
            apiary(folder, "data", "partition", "digits", *kind, "--out", "all")
            a_third(folder / "all", folder / "third")
            plan = [word for setting in DEMOS for word in ("--set", setting)]
            run, first = simulate(folder, "third", args.rounds, seed, *plan)
            start = ["--set", f"run.start_from={run / 'model.keras'}"]
            _, second = simulate(folder, "all", args.rounds, seed, *plan, *start)
            began = second["ancestor"]["accuracy_here"]
            figures = (first["best_accuracy"], began, second["best_accuracy"])
            say(f"{seed:4d}   {100 * figures[0]:11.1f}   {100 * figures[1]:12.1f}   {100 * figures[2]:12.1f}")


if __name__ == "__main__":
    main()
