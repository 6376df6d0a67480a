"""A node's memory as an appliance: a training child with 1,000 cached pictures, and the service while idle.

    python -m benchmarks.memory.appliance [--pictures 1000] [--json]

The training child trains the head of `mobilenet_v2` at 160x160 (batch 8, 2 epochs) on pictures of 640x480
that this makes; first with an empty cache, then with every picture's features cached. The idle node is
`apiary edge` with a broker, a sample store with the same pictures, a folder camera and live prediction, left
alone for a while. Figures are the kernel's: VmHWM of /proc/PID/status. Exit code 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from benchmarks.measuring.kernel_figures import children, memory
from benchmarks.measuring.processes import end
from PIL import Image

from apiary.bus.broker import start_broker
from apiary.process.child import light_environment
from apiary.wire import blob
from apiary.wire.chunks import digest_of
from apiary.wire.messages import Plan
from apiary_coordinator.export.client import Built, build_in_child
from apiary_coordinator.export.job import BuildJob
from apiary_edge.training.job import TrainJob

CHILD_MB, IDLE_MB = 130.0, 80.0
LABELS = ["hardhat", "head"]
PLAN = Plan(epochs=2, batch_size=8, validation_share=0.2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long the idle node is watched")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apiary-bench-") as name:
        scratch = Path(name)
        make_pictures(scratch / "pictures", args.pictures)
        built = build_in_child(
            BuildJob(
                recipe="mobilenet_v2",
                options={"weights": "random"},
                labels=LABELS,
                plan=PLAN,
                out=scratch / "build",
            )
        )
        first = train(built, scratch)
        cached = train(built, scratch)
        service, camera = idle(scratch, args.idle_s)
    figures = {
        "training, empty cache": (first, CHILD_MB),
        "training, cached": (cached, CHILD_MB),
        "service, idle": (service, IDLE_MB),
        "camera's child, idle": (camera, None),
    }
    for what, (mb, bound) in figures.items():
        print(f"{what:22} {mb:8.1f} MB  {f'bound {bound:.0f}' if bound else ''}", file=sys.stderr)
    if args.json:
        print(json.dumps({what: mb for what, (mb, _) in figures.items()}))
    return 0 if all(bound is None or mb < bound for mb, bound in figures.values()) else 1


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs as a camera makes them: about 50 kB each, no two alike."""
    rng = np.random.default_rng(0)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).resize((640, 480))
        coarse.save(folder / LABELS[i % 2] / f"{i}.jpg", quality=85)


def train(built: Built, scratch: Path) -> float:
    """One training child; its peak in MB."""
    out = scratch / "training"
    out.mkdir(exist_ok=True)
    model = scratch / "model.blob"
    model.write_bytes(blob.encode(built.initial))
    assert built.base is not None
    job = TrainJob(
        run="bench", round=1, node="node", plan=PLAN, manifest=built.manifest_file, trainer=built.trainer,
        base=built.base, base_digest=digest_of(built.base.read_bytes()), model=model,
        data_dir=scratch / "pictures", cache_dir=scratch / "cache", cache_mb=256, out=out, runtime="litert",
        threads=1,
    )  # fmt: skip
    (out / "job.json").write_text(job.model_dump_json())
    child = subprocess.Popen(
        [sys.executable, "-m", "apiary_edge.training.worker", str(out / "job.json")],
        stdout=subprocess.PIPE,
        env=light_environment(),
    )
    assert child.stdout is not None
    last = child.stdout.read().splitlines()[-1]
    _, _, used = os.wait4(child.pid, 0)
    if json.loads(last)["kind"] != "done":
        raise SystemExit(f"the training ended with {last!r}")
    return used.ru_maxrss * 1024 / 1e6  # ru_maxrss is VmHWM, in KiB


def idle(scratch: Path, seconds: float) -> tuple[float, float]:
    """Peak MB of the service and of its camera's child, after a while with a broker and nothing to do."""
    state = scratch / "state"
    apiary = [sys.executable, "-m", "apiary_cli"]
    quiet = subprocess.DEVNULL
    subprocess.run(
        [*apiary, "samples", "import", str(scratch / "pictures"), "--state-dir", str(state)],
        check=True,
        stdout=quiet,
    )
    watched = scratch / "watched"
    watched.mkdir()
    with start_broker(0) as broker:
        environment = os.environ | {
            "APIARY_BROKER__PORT": str(broker.port),
            "APIARY_EDGE__CAMERA__KIND": "folder",
            "APIARY_EDGE__CAMERA__SOURCE": str(watched),
            "APIARY_EDGE__PREDICT__ENABLED": "true",
            "APIARY_EDGE__PREDICT__PORT": "0",
        }
        node = subprocess.Popen(
            [*apiary, "edge", "--node-id", "bench", "--state-dir", str(state)], env=environment
        )
        try:
            service, camera = 0.0, 0.0
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if node.poll() is not None:
                    raise SystemExit(f"the node ended with code {node.returncode}")
                if (own := memory(node.pid)) is not None:
                    service = max(service, own.peak)
                for pid in children(node.pid):
                    if (theirs := memory(pid)) is not None:
                        camera = max(camera, theirs.peak)
                time.sleep(0.5)
            return service, camera
        finally:
            end(node)


if __name__ == "__main__":
    raise SystemExit(main())
