"""What training a part of a model costs: a step's time, the trainer's file, the bytes of an update.

    python -m benchmarks.learning.parts           edge_cnn at 96x96x3, 2 labels, batch 16, Adam; a minute

Each part is exported and put through the gate; a step is the median of 40 in the runtime that nodes choose.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.measuring.printing import say

from apiary.learn.runtimes import choose
from apiary.learn.runtimes.base import StepControls
from apiary.wire import blob
from apiary.wire.messages import Plan
from apiary_coordinator.export.client import build_in_child
from apiary_coordinator.export.job import BuildJob
from apiary_coordinator.export.probe import batch

PARTS = {"all": [], "from the fourth block on": ["block4_*", "block5_*", "classes"], "classes": ["classes"]}
STEPS = 40


def main() -> None:
    """Print a line for each part."""
    say("part                       step ms   trainer kB   update kB")
    for name, train in PARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            job = BuildJob(
                recipe="edge_cnn", labels=["head", "hardhat"], plan=Plan(), train=train,
                out=Path(folder) / "out",
            )  # fmt: skip
            built = build_in_child(job)
            trainer = choose("auto").open_trainer(built.manifest, built.trainer, threads=1)
            trainer.set_weights(built.initial)
            took, one = [], batch(built.manifest, 0)
            for _ in range(STEPS):
                began = time.perf_counter()
                trainer.step(*one, StepControls(1e-3))
                took.append(time.perf_counter() - began)
            update = blob.most_bytes(built.manifest.update_shapes, "raw_f32")
            say(
                f"{name:26} {1000 * median(took):7.1f} {built.trainer.stat().st_size / 1000:12.0f} "
                f"{update / 1000:11.1f}"
            )


if __name__ == "__main__":
    main()
