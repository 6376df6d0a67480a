"""The least that a federated round over MQTT can be: chunks out, the same chunks back, one sum.

paho-mqtt and a broker, QoS 1, 120,000-byte chunks; a process for the coordinator and one for each node.
No checks of any kind: no digests, no order, no repetition, no disk, no receipts. What Apiary costs beyond
this is the price of its promises.

    python -m benchmarks.fleet.bare_loop --port 1883 --nodes 10 --bytes 14000000 --rounds 8 [--tuned]

Prints one JSON line: seconds of each round, the first among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from benchmarks.measuring.kernel_figures import children, cpu_of, per_round
from benchmarks.measuring.processes import python
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from apiary.process.allocator import tune
from apiary.process.child import die_with_parent

CHUNK = 120_000
KEEPALIVE_S = 60
LATEST_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--bytes", type=int, default=14_000_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tuned", action="store_true", help="tune glibc's allocator, as Apiary does")
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    die_with_parent()
    if args.tuned:
        tune(small=args.node is not None)
    if args.node is not None:
        return node(args.port, args.node, args.bytes)
    print(json.dumps(coordinator(args.port, args.nodes, args.bytes, args.rounds)))
    return 0


def coordinator(port: int, nodes: int, size: int, rounds: int) -> dict[str, Any]:
    """Run the rounds; how long each took, and the processor time of a round after the first."""
    model = np.random.default_rng(0).normal(size=size // 4).astype(np.float32)
    chunks = count(size)
    total = np.zeros_like(model)
    seen = {"hello": 0, "chunks": 0}

    def on_message(_client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if message.topic.startswith("bare/hello/"):
            seen["hello"] += 1
            return
        index = int(message.topic.rsplit("/", 1)[1])
        part = np.frombuffer(message.payload, dtype=np.float32)
        at = index * CHUNK // 4
        total[at : at + part.size] += part
        seen["chunks"] += 1

    client = connect(port, "bare-coordinator")
    client.on_message = on_message
    client.subscribe([("bare/hello/+", 1), ("bare/up/+/+", 1)])
    turn(client, 0.2)
    command = [*python("fleet.bare_loop"), *sys.argv[1:], "--port", str(port), "--bytes", str(size)]
    fleet = [subprocess.Popen([*command, "--node", str(i)]) for i in range(nodes)]
    seconds: list[float] = []
    cpu: list[dict[str, float]] = []
    try:
        wait(client, lambda: seen["hello"] == nodes)
        for _ in range(rounds):
            seen["chunks"] = 0
            total[:] = 0
            began = time.perf_counter()
            publish(client, "bare/down", model)
            wait(client, lambda: seen["chunks"] == nodes * chunks)
            seconds.append(time.perf_counter() - began)
            cpu.append(cpu_of(os.getpid(), children(os.getpid()) + children(os.getppid())))
            assert np.allclose(total, nodes * model, rtol=1e-5), "the bare loop lost or doubled a chunk"
    finally:
        for process in fleet:
            process.kill()
            process.wait()
    return {"seconds": seconds, "cpu": per_round(cpu[0], cpu[-1], rounds - 1)}


def node(port: int, number: int, size: int) -> int:
    """Return every model that comes, until killed."""
    model = np.zeros(size // 4, dtype=np.float32)
    chunks = count(size)
    left = chunks

    def on_message(client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        nonlocal left
        index = int(message.topic.rsplit("/", 1)[1])
        part = np.frombuffer(message.payload, dtype=np.float32)
        at = index * CHUNK // 4
        model[at : at + part.size] = part
        left -= 1
        if left == 0:
            left = chunks
            publish(client, f"bare/up/{number}", model)

    client = connect(port, f"bare-node-{number}")
    client.on_message = on_message
    client.subscribe("bare/down/+", 1)
    client.publish(f"bare/hello/{number}", b"", 1)
    client.loop_forever()
    return 0


def connect(port: int, name: str) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(20)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", port, KEEPALIVE_S)
    end = time.monotonic() + LATEST_S
    while not client.is_connected():
        if time.monotonic() > end:
            raise TimeoutError(f"{name}: no connection to port {port} within {LATEST_S:.0f} s")
        client.loop(0.1)
    return client


def publish(client: paho.Client, topic: str, model: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    view = model.data.cast("B")
    for index in range(count(len(view))):
        client.publish(f"{topic}/{index}", bytes(view[index * CHUNK : (index + 1) * CHUNK]), 1)


def count(size: int) -> int:
    return -(-size // CHUNK)


def wait(client: paho.Client, done: Any) -> None:
    end = time.monotonic() + LATEST_S
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"a round of the bare loop took more than {LATEST_S:.0f} s")
        client.loop(0.05)


def turn(client: paho.Client, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.loop(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
