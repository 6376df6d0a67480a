"""What one node does to the model that keeps to every rule of admission, and flips its sign.

    python -m benchmarks.learning.liar                     the table of benchmarks/README.md
    python -m benchmarks.learning.liar --clip 1.5 --ratio 2

Five nodes train on the digits as in `apiary demo`; the fifth claims as many samples as its cohort bears and
sends its update turned round, as long as the round's bound on norms allows. "Left out" are the four others
alone: more than that no defence can keep. Training steps, weights, bounds and the sum are the product's own;
broker, disk and processes, which change no bits, are not there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from benchmarks.measuring.federation import Federation, federate, settings_of
from benchmarks.measuring.printing import say

from apiary.learn.clip import clipped
from apiary.tensors import Weights
from apiary.wire import blob
from apiary.wire.messages import Bounds
from apiary_coordinator.model.keras import evaluate
from apiary_coordinator.strategies import fedavg
from apiary_coordinator.updates import limits
from apiary_coordinator.updates.exact_sum import ExactSum, grid_bits

NODES = 5
EARLY, LATE = 5, 15
"""Rounds after which accuracy is compared."""
EARLY_AT_LEAST = 0.85
LATE_WITHIN = 0.02
"""Of what honest nodes reach."""


KINDS = ("honest", "one liar", "left out")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracy on the held-out digits after each round."""

    seed: int
    kind: str
    accuracy: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=float, help="run.clip")
    parser.add_argument("--ratio", type=float, help="run.max_weight_ratio")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--rounds", type=int, default=LATE)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    given = {"clip": args.clip, "max_weight_ratio": args.ratio}
    chosen = {k: v for k, v in given.items() if v is not None}
    found: list[Outcome] = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory(prefix="apiary-liar-") as folder:
            federation = federate(
                "digits", Path(folder), settings_of("digits", seed, **chosen), nodes=args.nodes
            )
            for kind in KINDS:
                say(f"seed {seed}, {kind}")
                found.append(Outcome(seed, kind, rounds(federation, kind, args.rounds)))
    report(found, as_json=args.json)
    return 0 if holds(found) else 1


def rounds(federation: Federation, kind: str, count: int) -> list[float]:
    """Accuracy on the held-out digits after each round."""
    model, last, accuracies = federation.built.initial, None, []
    for number in range(1, count + 1):
        model, last = one_round(federation, model, number, last, kind)
        found = evaluate(federation.trainer, model, federation.held_out, federation.built.manifest.labels)
        accuracies.append(found.accuracy)
    return accuracies


def one_round(
    federation: Federation, model: Weights, number: int, last: float | None, kind: str
) -> tuple[Weights, float]:
    """The next model, and the median norm of the updates that it was made of."""
    run, plan = federation.run, federation.run.plan
    *others, last_node = federation.nodes
    nodes = others if kind == "left out" else [*others, last_node]
    expected = [limits.expected_samples(len(federation.nodes[n]), plan.validation_share) for n in nodes]
    cap = limits.weight_cap(expected, len(expected), run.max_weight_ratio)
    bounds = Bounds(
        max_samples=cap, max_norm=limits.norm_bound(last, model.norm(), run.clip, run.bounds.max_norm)
    )
    total = ExactSum(federation.built.manifest.shapes, grid_bits(bounds, len(expected)))
    norms: list[float] = []
    for node in nodes:
        done = federation.train(node, model, number)
        update, samples = done.weights - model, min(done.samples, cap)
        if kind == "one liar" and node == last_node:
            update, samples = turned(update, bounds.max_norm), cap
        update = clipped(update, bounds.max_norm, blob.codec(plan.codec))
        norms.append(update.norm())
        total.add(update, samples)
    lengths = ", ".join(f"{norm:.3g}" for norm in norms)
    say(f"  round {number}: cap {cap}, bound {bounds.max_norm:.4g}, norms {lengths}")
    _, moved = fedavg.apply(Weights({}), model, total.mean())
    return moved, limits.median_norm(norms)


def turned(update: Weights, norm: float) -> Weights:
    """The update with its sign flipped, as long as `norm`."""
    factor = np.float32(-norm / update.norm())
    return Weights({name: factor * tensor for name, tensor in update.items()})


def after(found: list[Outcome], number: int) -> list[dict[str, float]]:
    """Accuracy of each kind after so many rounds, a seed each."""
    seeds = sorted({f.seed for f in found})
    return [{f.kind: f.accuracy[number - 1] for f in found if f.seed == seed} for seed in seeds]


def holds(found: list[Outcome]) -> bool:
    """Whether the bounds of both dates are met with every seed."""
    early = all(row["one liar"] >= EARLY_AT_LEAST for row in after(found, EARLY))
    return early and all(row["one liar"] >= row["honest"] - LATE_WITHIN for row in after(found, LATE))


def report(found: list[Outcome], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(f) for f in found]))
        return
    print(f"{'rounds':>6}  {'seed':>4}  " + "  ".join(f"{kind:>8}" for kind in KINDS))
    for number in (EARLY, LATE):
        for seed, row in enumerate(after(found, number)):
            print(f"{number:6}  {seed:4}  " + "  ".join(f"{row[kind]:8.1%}" for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
