"""What a round costs besides training: Apiary against a bare MQTT loop, and against Flower where it is there.

    python -m benchmarks.round.overhead [--flwr-python PATH] [--json]

Ten node processes return the model they got; models of 14 MB and 0.84 MB in float32. The bare loop is
measured in the same run, before and after, so that a busy machine slows both. Where a bound is missed the
exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measuring.kernel_figures import memory, peak
from benchmarks.measuring.printing import number, say
from benchmarks.measuring.processes import broker, child, python, run, scratch

HERE = Path(__file__).resolve().parent
SIZES = {"14 MB": (14_000_000, 53), "0.84 MB": (840_000, 12)}
TMPFS_BOUND, DISK_BOUND, COORDINATOR_MB = 1.5, 2.5, 200.0
LATEST_S = 300.0
WARM_UP = 1
"""Rounds left out: in the first one the nodes also fetch manifest and trainer, and files are created."""


@dataclass(slots=True)
class Row:
    """One measurement: seconds are the median of its rounds after the warm-up."""

    size: str
    what: str
    seconds: float
    fastest: float
    slowest: float
    wall: float | None = None
    period: float | None = None
    collected: float | None = None
    coordinator_mb: float | None = None
    broker_mb: float | None = None
    node_mb: float | None = None
    cpu: dict[str, float] = field(default_factory=dict)
    """Processor seconds a round: coordinator, broker, all nodes together."""
    ratio: float | None = None
    bound: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=11, help=f"per measurement; {WARM_UP} more to warm up")
    parser.add_argument("--size", choices=SIZES, action="append", help="only this model")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a folder on tmpfs")  # noqa: S108 - it is where tmpfs is
    parser.add_argument("--disk", type=Path, default=HERE.parents[1], help="a folder on a disk")
    parser.add_argument("--flwr-python", type=Path, help="an interpreter with `flwr` installed")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="profiles of coordinator and one node")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    rows: list[Row] = []
    for size in args.size or SIZES:
        rows += measure(args, size)
    print(table(rows), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(
            json.dumps({"nodes": args.nodes, "load": os.getloadavg()[0], "rows": [asdict(r) for r in rows]})
        )
    return 1 if any(not met(row) for row in rows) else 0


def measure(args: argparse.Namespace, size: str) -> list[Row]:
    """All measurements for one model."""
    say(f"{size}: bare loop")
    before = [bare(args, size, tuned=tuned) for tuned in (False, True)]
    say(f"{size}: Apiary, spool on tmpfs")
    tmpfs = apiary(args, size, "Apiary, spool on tmpfs", args.tmpfs, sync=False)
    say(f"{size}: Apiary, full sync on disk")
    disk = apiary(args, size, "Apiary, full sync on disk", args.disk, sync=True)
    after = [bare(args, size, tuned=tuned) for tuned in (False, True)]
    rows = []
    for i, what in enumerate(("bare MQTT loop", "bare, allocator tuned")):
        row = summed(size, what, [*before[i]["seconds"][WARM_UP:], *after[i]["seconds"][WARM_UP:]])
        row.cpu = {who: (before[i]["cpu"][who] + after[i]["cpu"][who]) / 2 for who in before[i]["cpu"]}
        rows.append(row)
    tmpfs.bound, disk.bound = TMPFS_BOUND, DISK_BOUND
    for row in (tmpfs, disk):
        row.ratio = row.seconds / rows[0].seconds
    rows += [tmpfs, disk]
    flower = flower_row(args, size)
    return rows + ([flower] if flower else [])


def bare(args: argparse.Namespace, size: str, *, tuned: bool) -> dict[str, Any]:
    rounds = -(-args.rounds // 2) + WARM_UP
    command = [
        *python("fleet.bare_loop"), "--nodes", str(args.nodes), "--bytes", str(SIZES[size][0]),
        "--rounds", str(rounds),
    ]  # fmt: skip
    with broker() as b:
        told = run([*command, "--port", str(b.port), *(["--tuned"] if tuned else [])])
    return told


def apiary(args: argparse.Namespace, size: str, what: str, where: Path, *, sync: bool) -> Row:
    """Real services over a real broker. Only the coordinator's folder is `where`: ten nodes on one
    machine would share the disk that each has to itself in the field, so theirs are on tmpfs."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(where))
        nodes_folder = stack.enter_context(scratch(args.tmpfs))
        pictures = nodes_folder / "pictures"
        for label in ("a", "b"):
            (pictures / label).mkdir(parents=True)
        for i in range(20):
            (pictures / "ab"[i % 2] / f"{i}.png").touch()
        b = stack.enter_context(broker())
        common = [
            "--port", str(b.port), "--nodes", str(args.nodes), "--bytes", str(SIZES[size][0]),
            "--layers", str(SIZES[size][1]), "--rounds", str(args.rounds + WARM_UP),
        ]  # fmt: skip
        names = [f"pi-{i:02d}" for i in range(args.nodes)]
        nodes = [
            stack.enter_context(
                child(
                    "node", "--folder", str(nodes_folder), "--node-id", name, *common,
                    *profile(args, what, name if name == names[0] else None),
                )
            )
            for name in names
        ]  # fmt: skip
        coordinator = stack.enter_context(
            child(
                "coordinator", "--folder", str(folder), *common, *(["--sync"] if sync else []),
                *profile(args, what, "coordinator"),
            )
        )  # fmt: skip
        peaks = {"coordinator": 0.0}
        until = time.monotonic() + LATEST_S
        while coordinator.poll() is None:
            if any(p.poll() is not None for p in nodes) or time.monotonic() > until:
                raise SystemExit("a node has ended, or the rounds took too long: see what was said above")
            found = memory(coordinator.pid)
            peaks["coordinator"] = max(peaks["coordinator"], found.peak if found else 0.0)
            try:
                coordinator.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        assert coordinator.stdout is not None
        said = coordinator.stdout.read()
        if coordinator.returncode != 0:
            raise SystemExit(f"the coordinator ended with code {coordinator.returncode}")
        told = json.loads(said.splitlines()[-1])
        row = summed(size, what, told["seconds"][WARM_UP:])
        row.wall = statistics.median(told["wall"][WARM_UP:])
        row.period = statistics.median(told["period"])
        row.collected = statistics.median(told["collected"][WARM_UP:])
        row.cpu = told["cpu"]
        row.coordinator_mb = peaks["coordinator"]
        row.broker_mb = peak(b.pid)
        row.node_mb = max(peak(p.pid) for p in nodes)
        return row


def flower_row(args: argparse.Namespace, size: str) -> Row | None:
    if args.flwr_python is None or not can_flower(args.flwr_python):
        say("Flower is left out: give --flwr-python an interpreter in which `import flwr` works")
        return None
    say(f"{size}: Flower, legacy gRPC")
    told = run(
        [
            str(args.flwr_python), str(HERE / "flower.py"), "--nodes", str(args.nodes),
            "--bytes", str(SIZES[size][0]), "--layers", str(SIZES[size][1]),
            "--rounds", str(args.rounds + WARM_UP),
        ]
    )  # fmt: skip
    row = summed(size, f"Flower {told['version']}, legacy gRPC", told["seconds"][WARM_UP:])
    row.coordinator_mb = told["server_peak_mb"]
    return row


def can_flower(interpreter: Path) -> bool:
    return (
        subprocess.run([str(interpreter), "-c", "import flwr"], capture_output=True, check=False).returncode
        == 0
    )


def summed(size: str, what: str, seconds: list[float]) -> Row:
    return Row(size, what, statistics.median(seconds), min(seconds), max(seconds))


def met(row: Row) -> bool:
    """Whether a row is within its bounds."""
    ours = row.bound is not None
    fast = row.ratio is None or row.bound is None or row.ratio <= row.bound
    return not ours or (fast and (row.coordinator_mb or 0) < COORDINATOR_MB)


def table(rows: list[Row]) -> str:
    lines = [
        f"{'model':8} {'what':30} {'median ms':>9} {'min-max':>10} {'wall':>6} {'period':>6} "
        f"{'collect':>7} {'ratio':>6} {'bound':>5} {'coord MB':>8} {'broker':>6} {'node':>5}  "
        "cpu ms: coordinator broker nodes"
    ]
    for r in rows:
        spread = f"{1e3 * r.fastest:.0f}-{1e3 * r.slowest:.0f}"
        lines.append(
            f"{r.size:8} {r.what:30} {1e3 * r.seconds:9.0f} {spread:>10} {ms(r.wall):>6} {ms(r.period):>6} "
            f"{ms(r.collected):>7} {number(r.ratio, 2):>6} {number(r.bound, 1):>5} "
            f"{number(r.coordinator_mb):>8} {number(r.broker_mb):>6} {number(r.node_mb):>5}  "
            + " ".join(ms(v) for v in r.cpu.values())
            + ("" if met(r) else "  MISSED")
        )
    return "\n".join(lines)


def ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.0f}"


def profile(args: argparse.Namespace, what: str, who: str | None) -> list[str]:
    if args.profile is None or who is None:
        return []
    args.profile.mkdir(parents=True, exist_ok=True)
    return ["--profile", str(args.profile / f"{what.rsplit(' ', 1)[1]}-{who}.prof")]


if __name__ == "__main__":
    raise SystemExit(main())
