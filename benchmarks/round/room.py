"""What a training child takes of memory, against what a node expects of it before it fetches anything.

    python -m benchmarks.round.room [--exports DIR] [--json]

Each recipe below is exported once (kept in --exports for the next time), then trained for a round on random
pictures by the node's own child process. VmHWM and VmPeak are the kernel's marks of its resident memory and
its address space. Exit code 1 where the estimate was too small, which risks the node, or more than twice what
was needed, which keeps small nodes out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from apiary.learn.manifest import Manifest
from apiary.process.child import light_environment
from apiary.wire.messages import Announcement, BlobRef, Bounds, Plan
from apiary_coordinator.export.job import DONE, BuildJob
from apiary_coordinator.run.messages import needs
from apiary_edge.guest.round_needs import room_for
from apiary_edge.training.job import TrainJob

LABELS = ["cat", "dog"]
LATEST_S = 600.0
FIGURES = ("resident", "expected", "address", "expected_address")


class Case(NamedTuple):
    """A recipe with its options, the batch, the number of pictures; SGD has no momentum."""

    recipe: str
    options: dict[str, Any]
    batch: int
    pictures: int
    optimizer: Literal["adam", "sgd"] = "adam"

    @property
    def name(self) -> str:
        options = "-".join(f"{k}{v}" for k, v in sorted(self.options.items()) if k != "weights")
        return f"{self.recipe}-{options}-b{self.batch}" + (
            f"-{self.optimizer}" if self.optimizer != "adam" else ""
        )

    @property
    def plan(self) -> Plan:
        """One epoch."""
        return Plan(batch_size=self.batch, epochs=1, optimizer=self.optimizer, momentum=0.0)


CASES = [
    Case("edge_cnn", {"size": 32}, 16, 100),
    Case("edge_cnn", {"size": 96}, 8, 100),
    Case("edge_cnn", {"size": 96}, 16, 100),
    Case("edge_cnn", {"size": 96}, 64, 100),
    Case("edge_cnn", {"size": 96}, 16, 2000),
    Case("edge_cnn", {"size": 160}, 32, 100),
    Case("maths_cnn", {}, 16, 100),
    Case("vgg_bn", {}, 32, 64, "sgd"),
    Case("mobilenet_v2", {"size": 96, "alpha": 0.35, "weights": "random"}, 8, 50),
    Case("mobilenet_v2", {"size": 160, "alpha": 1.0, "weights": "random"}, 8, 50),
    Case("mobilenet_v2", {"size": 224, "alpha": 1.0, "hidden": 1024, "weights": "random"}, 8, 50),
]


class Peak(NamedTuple):
    """Bytes: resident, address space."""

    resident: int
    address: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exports", type=Path, help="folder of exported recipes, kept for the next time")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apiary-bench-") as scratch:
        exports = args.exports or Path(scratch) / "exports"
        rows = [measured(case, exported(case, exports), Path(scratch)) for case in CASES]
    print(f"{'MB':44} {'resident':>8} {'expected':>8} {'address':>8} {'expected':>8}", file=sys.stderr)
    for row in rows:
        figures = " ".join(f"{row[name] / 1e6:8.1f}" for name in FIGURES)
        print(f"{row['case']:44} {figures}", file=sys.stderr)
    if args.json:
        print(json.dumps(rows))
    fits = [row["resident"] <= row["expected"] <= 2 * row["resident"] for row in rows]
    fits += [row["address"] <= row["expected_address"] <= 2 * row["address"] for row in rows]
    return 0 if all(fits) else 1


def exported(case: Case, folder: Path) -> Path:
    """The recipe's files."""
    out = folder / case.name
    if not (out / DONE).exists():
        out.mkdir(parents=True, exist_ok=True)
        job = BuildJob(recipe=case.recipe, options=case.options, labels=LABELS, plan=case.plan, out=out)
        (folder / "job.json").write_text(job.model_dump_json())
        command = [sys.executable, "-m", "apiary_coordinator.export", "build", str(folder / "job.json")]
        subprocess.run(command, check=True, timeout=LATEST_S)
    return out


def measured(case: Case, build: Path, scratch: Path) -> dict[str, Any]:
    """Train one round in the node's child; its peaks beside the sizes."""
    manifest = Manifest.decode((build / "manifest.json").read_bytes())
    folder = scratch / case.name
    side = (manifest.input.height, manifest.input.width, 3)
    rng = np.random.default_rng(1)
    for i in range(case.pictures):
        path = folder / "pictures" / LABELS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, side, np.uint8)).save(path, compress_level=0)
    base = build / "base.tflite"
    job = TrainJob(
        run="r",
        round=1,
        node="pi-1",
        plan=case.plan,
        manifest=build / "manifest.json",
        trainer=build / "trainer.tflite",
        base=base if base.exists() else None,
        base_digest="0" * 64 if base.exists() else None,
        model=build / "initial.blob",
        data_dir=folder / "pictures",
        cache_dir=folder / "cache",
        cache_mb=512,
        out=folder / "out",
        runtime="litert",
        threads=1,
    )
    (folder / "job.json").write_text(job.model_dump_json())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = peak_of([sys.executable, "-m", "apiary_edge.training.worker", str(folder / "job.json")])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    expected = room_for(announcement(case, build), samples=case.pictures, runtime="litert", missing=0)
    return {
        "case": f"{case.name}, {case.pictures} pictures",
        "resident": peak.resident,
        "expected": expected.memory,
        "address": peak.address,
        "expected_address": expected.address,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def announcement(case: Case, build: Path) -> Announcement:
    """The round as a coordinator would announce it."""

    def ref(name: str) -> BlobRef | None:
        path = build / name
        return BlobRef(digest="0" * 64, bytes=path.stat().st_size) if path.exists() else None

    return Announcement.model_validate(
        {
            "run": "r",
            "round": 1,
            "state": "open",
            "rounds": 1,
            "epoch": "e",
            "labels": LABELS,
            "model": ref("initial.blob"),
            "manifest": ref("manifest.json"),
            "trainer": ref("trainer.tflite"),
            "base": ref("base.tflite"),
            "plan": case.plan,
            "bounds": Bounds(),
            "deadline_s": 600.0,
            "needs": needs(Manifest.decode((build / "manifest.json").read_bytes())),
        }
    )


def peak_of(command: list[str]) -> Peak:
    """Run it to its end and read the kernel's marks until then."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=light_environment(MALLOC_ARENA_MAX="1"))
    peak = Peak(0, 0)
    end = time.monotonic() + LATEST_S
    while child.poll() is None and time.monotonic() < end:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        except OSError:
            break
        marks = {k: int(v.split()[0]) * 1024 for k, _, v in (x.partition(":") for x in lines) if k in _MARKS}
        if len(marks) == len(_MARKS):
            peak = Peak(marks["VmHWM"], marks["VmPeak"])
        time.sleep(0.01)
    try:
        code = child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise SystemExit(f"the child was not done after {LATEST_S:.0f} s: {command}") from None
    if code != 0:
        raise SystemExit(f"the child ended with {code}: {command}")
    return peak


_MARKS = ("VmHWM", "VmPeak")


if __name__ == "__main__":
    raise SystemExit(main())
