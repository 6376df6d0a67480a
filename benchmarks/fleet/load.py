"""What a whole fleet asks of one coordinator and one broker: rounds of 10, 100, 1000 and 5000 nodes.

    python -m benchmarks.fleet.load [--nodes 1000] [--kind light|whole] [--json]

Every node has its own MQTT connection to a real mosquitto; hundreds of them share a process, and training is
left out. Light nodes cost as little as the protocol allows, because a fleet's nodes do not work on the
server; whole nodes are the product's service, with outbox and state folder. Each update must be counted.
Beside them, in the same run, the bare loop with as many connections. Exit code 1: a bound was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring.kernel_figures import memory, peak
from benchmarks.measuring.printing import number, say
from benchmarks.measuring.processes import broker, child, python, run, scratch
from benchmarks.measuring.service import SAMPLES

ROOT = Path(__file__).resolve().parents[2]
UPDATE, SMALL_UPDATE = 840_000, 120_000
FLEETS = {10: UPDATE, 100: UPDATE, 1000: UPDATE, 5000: SMALL_UPDATE}
KINDS = {"light": "fleet.light_nodes", "whole": "fleet.whole_nodes"}
COORDINATOR_MB, BROKER_MB, RATIO = 250.0, 100.0, 2.0
BOUND_FROM = 1000
"""The bounds are for fleets of this size; of the smaller ones the table shows how time grows. The ratio is
bounded for light nodes: whole ones work on the server's processors here, which in a fleet they do not."""
LAYERS = 12
WARM_UP = 1
LATEST_S = 600.0
FILES_A_NODE = 4
"""A connection, its poller, and a pair to wake it."""


@dataclass(slots=True)
class Row:
    """One fleet; seconds are medians of the rounds after the first."""

    nodes: int
    kind: str
    update_bytes: int
    bare_s: float
    apiary_s: float
    slowest_s: float
    counted: int
    samples: int
    coordinator_mb: float
    broker_mb: float
    nodes_mb: float
    cpu_s: dict[str, float]
    """Processor seconds a round: coordinator, broker, all nodes."""
    bare_cpu_s: dict[str, float]
    load: float
    """Of the machine, over the minute before."""

    @property
    def ratio(self) -> float:
        """Against the bare loop of the same run."""
        return self.apiary_s / self.bare_s

    def missed(self) -> list[str]:
        """The bounds that this row breaks, in words."""
        told = []
        if self.counted != self.nodes or self.samples != SAMPLES * self.nodes:
            told.append(f"{self.counted} nodes with {self.samples} samples were counted")
        if self.coordinator_mb >= COORDINATOR_MB:
            told.append(f"coordinator over {COORDINATOR_MB:.0f} MB")
        if self.broker_mb >= BROKER_MB:
            told.append(f"broker over {BROKER_MB:.0f} MB")
        if self.kind == "light" and self.nodes >= BOUND_FROM and self.ratio > RATIO:
            told.append(f"more than {RATIO:g} times the bare loop")
        return told


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, action="append", help="only fleets of this size")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only light, or only whole nodes")
    parser.add_argument("--bytes", type=int, help="size of the model, and so of an update")
    parser.add_argument("--rounds", type=int, default=3, help=f"per fleet; {WARM_UP} more to warm up")
    parser.add_argument("--processes", type=int, default=2, help="that share the nodes")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="for the nodes' folders")  # noqa: S108 - it is where tmpfs is
    parser.add_argument("--disk", type=Path, default=ROOT, help="for the coordinator's folder, synced")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="profiles of coordinator and nodes")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    rows: list[Row] = []
    for nodes in args.nodes or FLEETS:
        if (short := too_few_files(nodes, args.processes)) is not None:
            say(f"{nodes} nodes: left out: {short}")
            continue
        size = args.bytes or FLEETS.get(nodes, UPDATE)
        bare = bare_loop(args, nodes, size)
        for kind in args.kind or KINDS:
            rows.append(measure(args, nodes, size, kind, bare))
            say(line(rows[-1]))
    print("\n".join([HEAD, *map(line, rows)]), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps([{**asdict(r), "ratio": r.ratio, "missed": r.missed()} for r in rows]))
    return 1 if any(r.missed() for r in rows) else 0


def too_few_files(nodes: int, processes: int) -> str | None:
    """Why our children may not open enough files for so many nodes, or None; raises the soft limit first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Of one process of nodes, or of the broker, which has one for each connection.
    need = max(FILES_A_NODE * -(-nodes // processes), nodes) + 200
    if hard != resource.RLIM_INFINITY and hard < need:
        return f"{need} open files are needed, {hard} are allowed (`ulimit -Hn`)"
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return None


def bare_loop(args: argparse.Namespace, nodes: int, size: int) -> dict[str, Any]:
    """Its seconds and processor time."""
    say(f"{nodes} nodes, {size / 1e6:.2f} MB: bare loop")
    with broker() as b:
        return run(
            [
                *python("fleet.bare_fleet"), "--port", str(b.port), "--nodes", str(nodes),
                "--bytes", str(size), "--rounds", str(args.rounds + WARM_UP),
                "--processes", str(args.processes),
            ]
        )  # fmt: skip


def measure(args: argparse.Namespace, nodes: int, size: int, kind: str, bare: dict[str, Any]) -> Row:
    """Apiary's rounds with nodes of this kind."""
    rounds = args.rounds + WARM_UP
    say(f"{nodes} nodes, {size / 1e6:.2f} MB: Apiary, {kind} nodes")
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(args.disk))
        homes = stack.enter_context(scratch(args.tmpfs))
        for label in ("a", "b"):
            (homes / "pictures" / label).mkdir(parents=True)
            for i in range(SAMPLES // 2):
                (homes / "pictures" / label / f"{i}.png").touch()
        b = stack.enter_context(broker())
        share = -(-nodes // args.processes)
        fleet = [
            stack.enter_context(
                child(
                    "--port", str(b.port), "--folder", str(homes), "--first", str(first),
                    "--count", str(min(share, nodes - first)), *profile(args, nodes, f"nodes-{first}"),
                    module=KINDS[kind],
                )
            )
            for first in range(0, nodes, share)
        ]  # fmt: skip
        coordinator = stack.enter_context(
            child(
                "coordinator", "--port", str(b.port), "--folder", str(folder), "--nodes", str(nodes),
                "--bytes", str(size), "--layers", str(LAYERS), "--rounds", str(rounds), "--sync",
                *profile(args, nodes, "coordinator"),
            )
        )  # fmt: skip
        most = peak(coordinator.pid)
        end = time.monotonic() + LATEST_S
        while coordinator.poll() is None:
            if any(p.poll() is not None for p in fleet) or time.monotonic() > end:
                raise SystemExit("the nodes have ended, or the rounds took too long: see what was said above")
            found = memory(coordinator.pid)
            most = max(most, found.peak if found else 0.0)
            try:
                coordinator.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        assert coordinator.stdout is not None
        said = coordinator.stdout.read()
        if coordinator.returncode != 0:
            raise SystemExit(f"the coordinator ended with code {coordinator.returncode}")
        told = json.loads(said.splitlines()[-1])
        return Row(
            nodes=nodes,
            kind=kind,
            update_bytes=size,
            bare_s=statistics.median(bare["seconds"][WARM_UP:]),
            # From one result to the next: nothing can hide between the rounds.
            apiary_s=statistics.median(told["period"]),
            slowest_s=max(told["period"]),
            counted=min(n for n, _ in told["counted"]),
            samples=min(samples for _, samples in told["counted"]),
            coordinator_mb=most,
            broker_mb=peak(b.pid),
            nodes_mb=sum(peak(p.pid) for p in fleet),
            cpu_s=told["cpu"],
            bare_cpu_s=bare["cpu"],
            load=os.getloadavg()[0],
        )


def profile(args: argparse.Namespace, nodes: int, who: str) -> list[str]:
    if args.profile is None:
        return []
    args.profile.mkdir(parents=True, exist_ok=True)
    return ["--profile", str(args.profile / f"{nodes}-{who}.prof")]


HEAD = (
    f"{'nodes':>5} {'kind':>5} {'update':>7} {'bare s':>7} {'Apiary s':>8} {'slowest':>7} "
    f"{'ratio':>5} {'ms/node':>7} {'counted':>7} {'coord MB':>8} {'broker':>6} {'nodes':>6}  "
    "cpu s: coordinator broker nodes (bare)  load"
)


def line(r: Row) -> str:
    cpu = " ".join(f"{r.cpu_s[who]:.2f} ({r.bare_cpu_s[who]:.2f})" for who in r.cpu_s)
    missed, seconds = r.missed(), f"{r.bare_s:7.3f} {r.apiary_s:8.3f} {r.slowest_s:7.3f}"
    return (
        f"{r.nodes:5} {r.kind:>5} {r.update_bytes / 1e6:4.2f} MB {seconds} "
        f"{r.ratio:5.2f} {1e3 * r.apiary_s / r.nodes:7.2f} {r.counted:7} {number(r.coordinator_mb):>8} "
        f"{number(r.broker_mb):>6} {number(r.nodes_mb):>6}  {cpu}  {r.load:.1f}"
        + (f"  MISSED: {'; '.join(missed)}" if missed else "")
    )


if __name__ == "__main__":
    raise SystemExit(main())
