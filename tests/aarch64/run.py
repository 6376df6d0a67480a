"""A node on a Raspberry Pi's Python and wheels, emulated: does it train, and do its pictures get there?

    make aarch64
    .venv/bin/python -m tests.aarch64.run [--only bookworm] [--json]

Bookworm with Python 3.11 and tflite-runtime, Trixie with Python 3.13 and ai-edge-litert, both of Debian's
arm64 packages and the wheels that a Pi installs, under qemu's user-mode emulation of a Cortex-A72. TensorFlow
exports both recipes on this machine first. Then, there:

    parity    the training step against Keras here, within the bounds that refuse an export
    bits      the same steps twice: the same bits; a training twice: the same update
    pictures  a folder camera, the sample store, labels by terminal and by folder, a training, an update; the
              update against the same job on this machine

Emulated times say nothing about a Pi and are not shown. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.aarch64.checks import DiffersError, bits, exported, parity, pictures
from tests.aarch64.tree import MIRROR, PIS, ROOT, SOURCES, CannotEmulateError, Tree, make

from apiary_coordinator.export.client import Built

Row = tuple[str, str, str, bool, str]
Check = Callable[[Tree, Built, Path], str]

STEP: Final[dict[str, Check]] = {"parity with Keras": parity, "bits": bits}
PICTURES: Final[dict[str, Check]] = {"pictures to update": pictures}
# The default recipe's own step at full size; else small, because emulated convolutions take seconds each.
CASES: Final[tuple[tuple[str, dict[str, Any], dict[str, Check]], ...]] = (
    ("edge_cnn", {}, STEP),
    ("edge_cnn", {"size": 32}, PICTURES),
    ("mobilenet_v2", {"weights": "random", "size": 96, "alpha": 0.35}, STEP | PICTURES),
)
LEFT_OUT: Final = (
    "Left out: the services (they start children, which user-mode emulation does not), picamera2 (it needs\n"
    "a camera), and every figure of time and memory."
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=[pi.suite for pi in PIS], help="one of them")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "aarch64", help="where trees are kept")
    parser.add_argument("--mirror", default=MIRROR, help="of Debian")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    # For the children of this machine, so that they run the checkout's code as the tree does.
    os.environ["PYTHONPATH"] = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    try:
        trees = [make(pi, args.build, args.mirror) for pi in PIS if args.only in (None, pi.suite)]
    except CannotEmulateError as e:
        print(e, file=sys.stderr)
        return 2
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="apiary-aarch64-") as scratch:
        for number, (recipe, options, checks) in enumerate(CASES):
            built = exported(recipe, options, args.build / "exports")
            for tree in trees:
                for row in check(tree, built, checks, Path(scratch) / tree.pi.suite / str(number)):
                    rows.append(row)
                    suite, recipe_, what, passed, figures = row
                    print(
                        f"{suite:21} {recipe_:13} {what:19} {'ok' if passed else 'FAILED':7} {figures}",
                        flush=True,
                    )
    print(LEFT_OUT)
    if args.json:
        print(
            json.dumps([dict(zip(("pi", "recipe", "what", "ok", "figures"), r, strict=True)) for r in rows])
        )
    return 0 if all(passed for *_, passed, _ in rows) else 1


def check(tree: Tree, built: Built, checks: dict[str, Check], folder: Path) -> Iterator[Row]:
    """Each check of one recipe on one Pi."""
    folder.mkdir(parents=True)
    name = f"{tree.pi.suite} {tree.pi.runtime}"
    for what, run in checks.items():
        try:
            passed, figures = True, run(tree, built, folder)
        except DiffersError as e:
            passed, figures = False, str(e)
        yield name, built.manifest.recipe, what, passed, figures


if __name__ == "__main__":
    raise SystemExit(main())
