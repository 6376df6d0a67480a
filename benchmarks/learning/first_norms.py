"""How far the first round's updates move each recipe's start model, as a share of that model's own norm.

    python -m benchmarks.learning.first_norms --data DIR      DIR holds hardhat, cifar10, fer2013 and names

The bound of a first round follows from it: `FIRST_SHARE` in `updates/limits.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.measuring.federation import federate, settings_of
from benchmarks.measuring.printing import say

from apiary.settings import RunSettings
from apiary_coordinator.updates.limits import FIRST_SHARE

HEAD: Final[dict[str, Any]] = {
    "recipe": "mobilenet_v2",
    "recipe_options": {"size": 96, "alpha": 0.35, "weights": "random"},
}
CASES: Final[tuple[tuple[str, dict[str, Any], int | None], ...]] = (
    ("digits", {}, None),
    ("hardhat", {}, None),
    ("hardhat", HEAD, None),
    ("cifar10", {}, 2000),
    ("fer2013", {}, 2000),
    ("names", {}, 4000),
)
"""Data set, what differs from the demo's settings, and how many samples of it."""
PLANS: Final[dict[str, dict[str, Any]]] = {
    "of the demo": {},
    "sgd .05": {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 2},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=3)
    args = parser.parse_args()
    print(f"{'recipe':14} {'data':8} {'plan':12} {'model':>7} {'least':>6} {'median':>6} {'most':>6}")
    largest = 0.0
    for dataset, more, limit in CASES:
        for plan, changes in PLANS.items():
            base = settings_of(dataset, **more)
            run = base.model_copy(update={"plan": base.plan.model_copy(update=changes)})
            model, shares = measure(dataset, run, limit, args.data, args.nodes)
            largest = max(largest, shares[len(shares) // 2])
            cells = " ".join(f"{share:6.3f}" for share in (shares[0], shares[len(shares) // 2], shares[-1]))
            print(f"{run.recipe:14} {dataset:8} {plan:12} {model:7.2f} {cells}", flush=True)
    print(f"the largest median is {largest:.3f}, the bound {FIRST_SHARE:g} of the model's norm")
    return 0 if largest <= FIRST_SHARE else 1


def measure(
    dataset: str, run: RunSettings, limit: int | None, data: Path, nodes: int
) -> tuple[float, list[float]]:
    """The start model's norm, and each node's first update as a share of it, ascending."""
    with tempfile.TemporaryDirectory(prefix="apiary-norms-") as folder:
        say(f"{run.recipe} on {dataset}")
        federation = federate(dataset, Path(folder), run, nodes=nodes, limit=limit, data=data)
        start = federation.built.initial
        norms = [(federation.train(node, start, 1).weights - start).norm() for node in federation.nodes]
        return start.norm(), sorted(n / start.norm() for n in norms)


if __name__ == "__main__":
    sys.exit(main())
