"""Many real nodes in one process: each a service with a connection, a state folder and an outbox of its own.

    python -m benchmarks.fleet.whole_nodes --port P --folder DIR --first 0 --count 500

As `measuring/service.py node`, which is one node in one process; here one loop turns those that have
something to do.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import NoReturn, Protocol

from benchmarks.measuring.service import started_node

from apiary.bus.mqtt import MqttBus
from apiary.process.allocator import tune
from apiary.process.child import die_with_parent
from apiary_edge.service import Edge

QUIET_S = 2.0
"""A node that hears nothing is turned this often, for its timers and its signs of life."""


class Node(Protocol):
    """Whatever has turns."""

    def step(self, timeout_s: float) -> None:
        """Take what came, do what is due."""
        ...


def main() -> None:
    args = parser(__doc__).parse_args()
    die_with_parent()
    tune(small=True)
    nodes = [node(args, i) for i in range(args.first, args.first + args.count)]
    # The collector of one process would look at hundreds of nodes each time; a node has its own to itself.
    gc.collect()
    gc.freeze()
    serve(nodes, args.profile)


def parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments of a process of many nodes."""
    said = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    said.add_argument("--port", type=int, required=True)
    said.add_argument(
        "--folder", type=Path, default=Path(), help="for the folders of nodes that keep something"
    )
    said.add_argument("--first", type=int, default=0)
    said.add_argument("--count", type=int, default=500)
    said.add_argument("--profile", type=Path, help="write cProfile's figures of the loop there")
    return said


def node(args: argparse.Namespace, number: int) -> tuple[MqttBus, Edge]:
    """One node, started; its bus connects by itself when it is turned."""
    args.host, args.node_id, args.nodes, args.rounds, args.sync = "127.0.0.1", f"pi-{number:04d}", 1, 1, False
    # Two models and what they were trained by: this machine keeps the folders of all.
    return started_node(args, f"s-{number}", 2 * 2**20)


def serve(nodes: Sequence[tuple[MqttBus, Node]], profile: Path | None = None) -> None:
    """Turn them until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if profile is None:
        turn(nodes)
    import cProfile

    figures = cProfile.Profile()
    try:
        figures.runcall(turn, nodes)
    finally:
        figures.dump_stats(profile)


def turn(nodes: Sequence[tuple[MqttBus, Node]]) -> NoReturn:
    """Turn whoever has something to read, something to do, or was quiet for a while; until killed."""
    selector = DefaultSelector()
    for one in nodes:
        selector.register(one[0].fileno(), EVENT_READ, one)
    # By the time of the last turn, so that those at the front are the next to be turned anyway.
    turned = OrderedDict((id(one), (one, 0.0)) for one in nodes)
    again: list[tuple[MqttBus, Node]] = []
    while True:
        now = time.monotonic()
        quiet = next(iter(turned.values()))[1] + QUIET_S
        ready = [key.data for key, _ in selector.select(0.0 if again else max(0.0, quiet - now))]
        now = time.monotonic()
        due = {id(one): one for one in (*again, *ready)}
        for one, at in turned.values():
            if now - at < QUIET_S:
                break
            due[id(one)] = one
        again = []
        for one in due.values():
            bus, service = one
            service.step(0.0)
            turned[id(one)] = (one, now)
            turned.move_to_end(id(one))
            if bus.due() <= now:
                again.append(one)


if __name__ == "__main__":
    main()
