"""The least that a round of a whole fleet can be: one model out, ten updates at a time back, one sum.

As `bare_loop.py`, for more nodes than there can be processes: each of a few processes turns many paho
clients by epoll. Offers and grants there are, because a broker whose queue overflows loses messages without
them; nothing is checked, kept or answered.

    python -m benchmarks.fleet.bare_fleet --port 1883 --nodes 1000 --bytes 840000 --rounds 3

Prints one JSON line: seconds of each round, the first among them.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import time
from collections import deque
from typing import Any

import numpy as np
from benchmarks.fleet.bare_loop import CHUNK, KEEPALIVE_S, connect, count, publish
from benchmarks.measuring.kernel_figures import children, cpu_of, per_round
from benchmarks.measuring.processes import python
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from apiary.process.allocator import tune
from apiary.process.child import die_with_parent

GRANTS = 10
LATEST_S = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=840_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    die_with_parent()
    tune(small=args.first is not None)
    if args.first is not None:
        serve([Node(args.port, args.first + i, args.bytes) for i in range(args.nodes)])
    print(json.dumps(coordinator(args)))
    return 0


def coordinator(args: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds; how long each took, and the processor time of a round after the first."""
    model = np.random.default_rng(0).normal(size=args.bytes // 4).astype(np.float32)
    chunks = count(args.bytes)
    total = np.zeros_like(model)
    offered: deque[str] = deque()
    left: dict[str, int] = {}
    seen = {"hello": 0, "done": 0}

    def on_message(client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        _, what, node, *rest = message.topic.split("/")
        if what == "hello":
            seen["hello"] += 1
            return
        if what == "offer":
            offered.append(node)
        else:
            part = np.frombuffer(message.payload, dtype=np.float32)
            at = int(rest[0]) * CHUNK // 4
            total[at : at + part.size] += part
            left[node] -= 1
            if left[node] == 0:
                del left[node]
                seen["done"] += 1
        while offered and len(left) < GRANTS:
            node = offered.popleft()
            left[node] = chunks
            client.publish(f"bare/grant/{node}", b"", 1)

    client = connect(args.port, "bare-coordinator")
    client.on_message = on_message
    client.subscribe([("bare/hello/+", 1), ("bare/offer/+", 1), ("bare/up/+/+", 1)])
    turn(client, lambda: False, 0.2)
    share = -(-args.nodes // args.processes)
    command = [*python("fleet.bare_fleet"), "--port", str(args.port), "--bytes", str(args.bytes)]
    fleet = [
        subprocess.Popen([*command, "--nodes", str(min(share, args.nodes - first)), "--first", str(first)])
        for first in range(0, args.nodes, share)
    ]
    seconds: list[float] = []
    cpu: list[dict[str, float]] = []
    try:
        turn(client, lambda: seen["hello"] == args.nodes, LATEST_S)
        for _ in range(args.rounds):
            seen["done"] = 0
            total[:] = 0
            began = time.perf_counter()
            publish(client, "bare/down", model)
            turn(client, lambda: seen["done"] == args.nodes, LATEST_S)
            seconds.append(time.perf_counter() - began)
            cpu.append(cpu_of(os.getpid(), children(os.getpid()) + children(os.getppid())))
            assert seen["done"] == args.nodes, f"{seen['done']} of {args.nodes} came"
            assert np.allclose(total, args.nodes * model, rtol=1e-3, atol=1e-2), "a chunk was lost or doubled"
    finally:
        for process in fleet:
            process.kill()
            process.wait()
    return {"seconds": seconds, "cpu": per_round(cpu[0], cpu[-1], args.rounds - 1)}


class Node:
    """Returns every model that comes, once it is granted."""

    def __init__(self, port: int, number: int, size: int):
        self.number = number
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, f"bare-node-{number}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self.client.max_inflight_messages_set(20)
        self.client.max_queued_messages_set(0)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", port, KEEPALIVE_S)
        self._model = np.zeros(size // 4, dtype=np.float32)
        self._left = self._chunks = count(size)

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        client.subscribe([("bare/down/+", 1), (f"bare/grant/{self.number}", 1)])
        client.publish(f"bare/hello/{self.number}", b"", 1)

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if message.topic.startswith("bare/grant"):
            publish(client, f"bare/up/{self.number}", self._model)
            return
        part = np.frombuffer(message.payload, dtype=np.float32)
        at = int(message.topic.rsplit("/", 1)[1]) * CHUNK // 4
        self._model[at : at + part.size] = part
        self._left -= 1
        if self._left == 0:
            self._left = self._chunks
            client.publish(f"bare/offer/{self.number}", b"", 1)


def serve(nodes: list[Node]) -> None:
    """Turn all clients until killed."""
    poller = select.epoll()
    by_fd = {node.client.socket().fileno(): node.client for node in nodes}  # type: ignore[union-attr] # None before it connects
    watched = dict.fromkeys(by_fd, select.EPOLLIN | select.EPOLLOUT)
    for fd, mask in watched.items():
        poller.register(fd, mask)
    misc_at = time.monotonic()
    while True:
        for fd, mask in poller.poll(1.0):
            client = by_fd[fd]
            if mask & select.EPOLLIN:
                client.loop_read()
            if client.want_write():
                client.loop_write()
            want = select.EPOLLIN | (select.EPOLLOUT if client.want_write() else 0)
            if want != watched[fd]:
                watched[fd] = want
                poller.modify(fd, want)
        if time.monotonic() - misc_at >= 5.0:
            misc_at = time.monotonic()
            for client in by_fd.values():
                client.loop_misc()


def turn(client: paho.Client, done: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        client.loop(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
