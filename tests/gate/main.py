"""Exports at many settings, pair by pair, each through the gate in both light packages: it must refuse none.

`make gate` (`ARGS='--rows 10'` for the first ten) takes about an hour on two cores. Each row of settings is
exported in a process of its own. Results are kept in `build/gate.jsonl`, so that a run that was stopped goes
on. The trainers of `wrong_exports.py` follow, each with both optimizers: it must refuse them all. Ends with 0
where only these were refused; the table says how near each measure came to its bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from allpairspy import AllPairs
from tests.places import ROOT

from apiary.errors import ApiaryError
from apiary_coordinator.export import parity

RECIPES: Final = ("edge_cnn", "char_rnn", "mobilenet_v2", "maths_cnn", "vgg_bn")
WRONG_IN: Final[dict[str, dict[str, Any]]] = {
    "edge_cnn": {"size": 16},
    "vgg_bn": {"size": 16, "widths": [8, 12], "hidden": [24]},
}
"""Recipes that are exported wrong, with their options."""
SIZES: Final = (16, 24, 32, 48, 64, 96, 128, 160)
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
LABELS: Final = (2, 3, 5, 10, 20)
OPTIMIZERS: Final = ("adam", "sgd", "sgd, no momentum")
SEEDS: Final = tuple(range(10))
KEPT: Final = ROOT / "build" / "gate.jsonl"
TIMEOUT_S: Final = 3600
BOUNDS: Final = {
    "gradient": parity.MAX_GRADIENT,
    "one_batch": parity.MAX_IN_ONE_BATCH,
    "optimizer": parity.MAX_OPTIMIZER,
    "prox": parity.MAX_PROX,
    "controls": parity.MAX_CONTROLS,
    "loss": parity.MAX_LOSS,
    "probability": parity.MAX_PROBABILITY,
    "filler": parity.MAX_FILLER,
    "statistics": parity.MAX_STATISTICS,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One export's settings; `size` in pixels, of `char_rnn` four for each letter.

    Those with an odd seed have weight decay and a bound on gradients.
    """

    recipe: str
    size: int
    batch_size: int
    labels: int
    optimizer: str
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """The recipe's options at this size."""
        if self.recipe == "char_rnn":
            return {"length": self.size // 4}
        if self.recipe == "mobilenet_v2":
            return {"size": max(self.size, 96), "alpha": 0.35, "weights": "random"}
        if self.recipe == "vgg_bn":
            # Blocks as wide as they are by default up to 48 pixels; a dense layer of larger ones is 100 MB.
            wide = self.size > 48
            small = {"widths": [16, 32, 48, 64], "hidden": [64]} if wide else {"hidden": [256, 128]}
            return {"size": self.size, **small, "statistics": "frozen" if self.seed == 4 else "averaged"}
        return {"size": self.size}


def rows() -> Iterator[Row]:
    """Settings among which each pair of values of two parameters occurs at least once."""
    for recipe, size, batch_size, labels, optimizer, seed in AllPairs(
        [RECIPES, SIZES, BATCHES, LABELS, OPTIMIZERS, SEEDS]
    ):
        yield Row(recipe, size, batch_size, labels, optimizer, seed)


def export(row: Row) -> dict[str, dict[str, float]]:
    """Export a row here and put it through the gate: the differences by package. Imports TensorFlow."""
    from apiary.learn.runtimes.keras import prepare

    prepare(1)
    from apiary.wire.messages import Plan
    from apiary_coordinator.export.build import build_folder
    from apiary_coordinator.export.job import BuildJob

    plan: dict[str, Any] = {"batch_size": row.batch_size, "optimizer": row.optimizer[:4].rstrip(",")}
    if row.optimizer.endswith("no momentum"):
        plan["momentum"] = 0.0
    if row.seed % 2:
        plan |= {"weight_decay": 0.01, "gradient_clip": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        job = BuildJob(
            recipe=row.recipe,
            options=row.options,
            labels=[f"label-{i}" for i in range(row.labels)],
            plan=Plan.model_validate(plan),
            seed=row.seed,
            out=Path(folder),
        )
        return {package: asdict(found) for package, found in build_folder(job).items()}


def in_child(row: Row) -> dict[str, Any]:
    """A row's differences, or why it was refused."""
    command = [sys.executable, "-m", "tests.gate.main", "--row", json.dumps(asdict(row))]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False, cwd=ROOT)
    if done.returncode:
        return {"refused": done.stderr.decode(errors="replace")[-600:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def kept() -> dict[Row, dict[str, Any]]:
    """Rows that were tried before."""
    if not KEPT.exists():
        return {}
    lines = (json.loads(line) for line in KEPT.read_text().splitlines())
    return {Row(**line["row"]): line["found"] for line in lines}


def passed_wrongly() -> list[str]:
    """The wrong trainers that the gate lets through, and right ones that it refuses."""
    wrong = []
    for (name_of_recipe, options), optimizer in itertools.product(WRONG_IN.items(), ("adam", "sgd")):
        module = [sys.executable, "-m", "tests.gate.wrong_exports"]
        command = [*module, name_of_recipe, optimizer, json.dumps(options)]
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True, cwd=ROOT)
        for name, why in map(json.loads, done.stdout.splitlines()):
            print(
                f"{name_of_recipe}, {optimizer}, {name}: {'passed' if why is None else 'refused: ' + why}",
                flush=True,
            )
            if (name == "right") != (why is None):
                wrong.append(f"{name_of_recipe}, {optimizer}, {name}")
    return wrong


def main(arguments: list[str]) -> int:
    """The command. 0 where nothing was refused but what is wrong, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="make gate", description=__doc__)
    parser.add_argument("--rows", type=int, help="only the first so many")
    parser.add_argument("--again", action="store_true", help="forget what was tried before")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.row:
        try:
            print(json.dumps(export(Row(**json.loads(chosen.row)))))
        except ApiaryError as e:
            print(e, file=sys.stderr)
            return e.exit_code
        return 0
    KEPT.parent.mkdir(exist_ok=True)
    if chosen.again:
        KEPT.unlink(missing_ok=True)
    known, todo = kept(), list(rows())[: chosen.rows]
    with KEPT.open("a") as out:
        for i, row in enumerate(todo, 1):
            if row not in known:
                known[row] = in_child(row)
                out.write(json.dumps({"row": asdict(row), "found": known[row]}) + "\n")
                out.flush()
            print(f"{i}/{len(todo)} {row}: {known[row].get('refused', 'passed')}", flush=True)
    tried = [known[row] for row in todo]
    passed = [found for found in tried if "refused" not in found]
    print(f"\n{len(tried)} exports, {len(tried) - len(passed)} refused")
    for package in sorted({package for found in passed for package in found}):
        for name, bound in BOUNDS.items():
            worst = max(found[package].get(name, 0.0) for found in passed if package in found)
            print(f"  {package:16} {name:12} at most {worst:.1e} of {bound:.0e}")
    wrong = passed_wrongly()
    print(f"judged wrongly: {', '.join(wrong) or 'none'}")
    return int(len(passed) < len(tried) or bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
