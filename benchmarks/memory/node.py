"""What a node takes of a Pi's memory: the real `apiary edge` with real pictures, by the kernel's figures.

    python -m benchmarks.memory.node [--data DIR] [--runtime litert] [--json]
    python -m benchmarks.memory.node --rounds 100 --epochs 1        does it grow?

A real broker, a real coordinator, and a node that trains `edge_cnn` at 96x96x3 on the hard-hat pictures of
client 1 (batch 16, 8 epochs). VmHWM is the kernel's own high-water mark, so no peak between two readings is
missed: of the service it is read at the end, of each training child until it ends. From 30 rounds on, the
service's resident memory (VmRSS) and the children's peaks in the last ten rounds are compared with those of
the rounds 11 to 20. Exit code 1 where a bound is missed.
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
from statistics import median
from typing import NamedTuple

from benchmarks.measuring.hardhat_pictures import add_data_flag
from benchmarks.measuring.kernel_figures import Memory, children, memory
from benchmarks.measuring.processes import end

from apiary.bus.broker import start_broker

SERVICE_MB, CHILD_MB = 60.0, 140.0
GROWTH_MB = 1.0
"""Of the service and of its children, over all rounds: a page here and there is the allocator's."""
WARM, WINDOW = 10, 10
LATEST_S = 600.0
PER_ROUND_S = 20.0
EVERY_S = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_flag(parser)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--runtime", default="auto", help="litert, keras or auto")
    parser.add_argument("--exports", type=Path, help="folder of exported recipes, kept for the next time")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    train, test = args.data / "dataset_client1" / "train", args.data / "dataset_server" / "test"
    if not train.is_dir() or not test.is_dir():
        print(f"no hard-hat pictures in {args.data}: give --data or APIARY_DATA", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="apiary-bench-") as scratch:
        seen = measure(args, train, test, Path(scratch))
    service, children_mb = seen.service, [peak.peak for peak in seen.children]
    child, trained = max(children_mb), len(children_mb)
    print(f"{'':16} {'peak MB':>8} {'bound':>6}", file=sys.stderr)
    print(f"{'service':16} {service.peak:8.1f} {SERVICE_MB:6.0f}", file=sys.stderr)
    print(f"{'training child':16} {child:8.1f} {CHILD_MB:6.0f}  ({trained} children)", file=sys.stderr)
    growth = {"service": grown(seen.resident), "training child": grown(children_mb)}
    for who, mb in growth.items():
        if mb is not None:
            print(f"{who + ' growth':21} {mb:+5.2f} {GROWTH_MB:4.0f}", file=sys.stderr)
    if args.json:
        print(json.dumps({"service_mb": service.peak, "child_mb": child, "children": trained, **growth}))
    flat = all(mb is None or mb < GROWTH_MB for mb in growth.values())
    return 0 if service.peak < SERVICE_MB and child < CHILD_MB and flat else 1


class Seen(NamedTuple):
    """The service at the end; each child at its peak and the service's resident MB beside it, in order."""

    service: Memory
    children: list[Memory]
    resident: list[float]


def grown(megabytes: list[float]) -> float | None:
    """How much the last ten are above those that followed the first ten; None where there are too few."""
    if len(megabytes) < WARM + 2 * WINDOW:
        return None
    return median(megabytes[-WINDOW:]) - median(megabytes[WARM : WARM + WINDOW])


def measure(args: argparse.Namespace, train: Path, test: Path, scratch: Path) -> Seen:
    """Run the rounds."""
    apiary = [sys.executable, "-m", "apiary_cli"]
    with start_broker(0) as broker:
        settings = {
            "APIARY_BROKER__PORT": str(broker.port),
            "APIARY_RUN__PLAN__EPOCHS": str(args.epochs),
            "APIARY_RUN__PLAN__BATCH_SIZE": "16",
            "APIARY_EDGE__RUNTIME": args.runtime,
            "APIARY_COORDINATOR__EXPORTS_DIR": str(args.exports or scratch / "exports"),
        }
        environment = {**os.environ, **settings}
        node_command = [*apiary, "edge", "--node-id", "client-1", "--data", str(train)]
        node = subprocess.Popen([*node_command, "--state-dir", str(scratch / "node")], env=environment)
        coordinator = subprocess.Popen(
            [
                *apiary, "coordinator", "--test-data", str(test), "--rounds", str(args.rounds),
                "--min-nodes", "1", "--state-dir", str(scratch / "state"),
                "--runs-dir", str(scratch / "runs"),
            ],
            env=environment,
        )  # fmt: skip
        try:
            return watch(node, coordinator, args.rounds)
        finally:
            end(coordinator, node)


def watch(node: subprocess.Popen[bytes], coordinator: subprocess.Popen[bytes], rounds: int) -> Seen:
    service = Memory(0.0, 0.0)
    peaks: dict[int, Memory] = {}
    beside: dict[int, float] = {}
    latest_s = LATEST_S + PER_ROUND_S * rounds
    until = time.monotonic() + latest_s
    while coordinator.poll() is None:
        if time.monotonic() > until or node.poll() is not None:
            raise SystemExit(f"{rounds} rounds were not over after {latest_s:.0f} s, or the node ended")
        service = memory(node.pid) or service
        for pid in children(node.pid):
            found = memory(pid)
            # Between fork and exec a child is still a copy of the service; its mark is reset by exec.
            if found is not None:
                peaks[pid] = found
                beside[pid] = service.now
        time.sleep(EVERY_S)
    if coordinator.returncode != 0 or len(peaks) < rounds:
        raise SystemExit(f"the run failed: code {coordinator.returncode}, {len(peaks)} trainings seen")
    return Seen(service, list(peaks.values()), list(beside.values()))


if __name__ == "__main__":
    raise SystemExit(main())
