"""What one node does to the model that keeps to every rule of admission, and flips its sign.

    python -m benchmarks.learning.liar                     the table of benchmarks/README.md
    python -m benchmarks.learning.liar --alpha 100 --seeds 1

Five nodes train on the digits as in `apiary demo`; the fifth claims as many samples as its cohort bears and
sends its update turned round, as long as the round's bound on norms allows. "Unguarded" is the same with
`run.leave_out_gain` 0. "Left out" are the four others alone: more than that no defence can keep, and
how much that is depends on how alike the nodes' digits are (`--alpha`). Training steps, weights, bounds, the
sum and the rule are the product's own; broker, disk and processes, which change no bits, are not there.
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
from apiary.learn.metrics import Evaluation
from apiary.tensors import Weights
from apiary.wire import NodeId, blob
from apiary.wire.messages import Bounds
from apiary_coordinator.server_rules.base import moved as add
from apiary_coordinator.updates import limits
from apiary_coordinator.updates.exact_sum import ExactSum, grid_bits
from apiary_coordinator.updates.leave_one_out import LOOKED_BACK, LeftOut, without_harmful

NODES = 5
EARLY, LATE = 5, 15
"""Rounds after which accuracy is compared."""
EARLY_AT_LEAST = 0.85
LATE_WITHIN = 0.02
"""Of what honest nodes reach."""


KINDS = ("honest", "one liar", "left out", "unguarded")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracy on the held-out digits after each round."""

    seed: int
    kind: str
    accuracy: list[float]
    left_out: list[list[str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=float, help="run.clip")
    parser.add_argument("--ratio", type=float, help="run.max_weight_ratio")
    parser.add_argument("--alpha", type=float, help="of the Dirichlet partition (default: the demo's .5)")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
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
                "digits",
                Path(folder),
                settings_of("digits", seed, **chosen),
                nodes=args.nodes,
                alpha=args.alpha,
            )
            for kind in args.kinds:
                say(f"seed {seed}, {kind}")
                found.append(Outcome(seed, kind, *rounds(federation, kind, args.rounds)))
    report(found, as_json=args.json)
    return 0 if holds(found) else 1


def rounds(federation: Federation, kind: str, count: int) -> tuple[list[float], list[list[str]]]:
    """Accuracy on the held-out digits after each round, and who was left out of it."""
    model, last, accuracies, left_out = federation.built.initial, None, [], []
    losses = [federation.evaluate(model).loss]
    for number in range(1, count + 1):
        model, last, found, out = one_round(federation, model, number, last, kind=kind, losses=losses)
        losses.append(found.loss)
        accuracies.append(found.accuracy)
        left_out.append(out)
    return accuracies, left_out


def one_round(
    federation: Federation,
    model: Weights,
    number: int,
    last: float | None,
    *,
    kind: str,
    losses: list[float],
) -> tuple[Weights, float, Evaluation, list[str]]:
    """The next model, the median norm of its updates, how good it is, and who was left out."""
    run, plan = federation.run, federation.run.plan
    *others, last_node = federation.nodes
    nodes = others if kind == "left out" else [*others, last_node]
    expected = [limits.expected_samples(len(federation.nodes[n]), plan.validation_share) for n in nodes]
    cap = limits.weight_cap(expected, len(expected), run.max_weight_ratio)
    bounds = Bounds(
        max_samples=cap, max_norm=limits.norm_bound(last, model.norm(), run.clip, run.bounds.max_norm)
    )
    total = ExactSum(federation.built.manifest.shapes, grid_bits(bounds, len(expected)))
    updates: dict[NodeId, tuple[Weights, int]] = {}
    for node in nodes:
        done = federation.train(node, model, number)
        update, samples = done.weights - model, min(done.samples, cap)
        if kind in ("one liar", "unguarded") and node == last_node:
            update, samples = turned(update, bounds.max_norm), cap
        updates[NodeId(node)] = clipped(update, bounds.max_norm, blob.codec(plan.codec)), samples
        total.add(*updates[NodeId(node)])

    def moved() -> Weights:
        return add(model, total.mean())

    def without(gone: frozenset[NodeId]) -> Evaluation:
        for node in gone:
            total.remove(*updates[node])
        found = federation.evaluate(moved())
        for node in gone:
            total.add(*updates[node])
        return found

    found, left_out = federation.evaluate(moved()), list[LeftOut]()
    before = min(losses[-LOOKED_BACK:])
    worse_by = found.loss / before
    if kind != "unguarded" and run.leave_out_gain > 0:
        pulls = {node: samples * update.norm() for node, (update, samples) in updates.items()}
        left_out, found = without_harmful(pulls, found, without, loss_before=before, gain=run.leave_out_gain)
    for one in left_out:
        total.remove(*updates.pop(one.node))
    out = [str(one.node) for one in left_out]
    norms = [update.norm() for update, _ in updates.values()]
    say(f"  round {number}: loss {worse_by:.2f} times the one before; left out: {', '.join(out) or 'none'}")
    return moved(), limits.median_norm(norms), found, out


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
    kinds = dict.fromkeys(f.kind for f in found)
    print(f"{'rounds':>6}  {'seed':>4}  " + "  ".join(f"{kind:>9}" for kind in kinds))
    for number in (EARLY, LATE):
        for seed, row in enumerate(after(found, number)):
            print(f"{number:6}  {seed:4}  " + "  ".join(f"{row[kind]:9.1%}" for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
