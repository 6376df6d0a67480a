"""What logging denials costs a broker: a pumped load, with and without `log_type debug` and the filter.

    python -m benchmarks.fleet.broker_log

Prints processor seconds of mosquitto and of the filter for each message that went through, for small control
messages (200 bytes) and for chunks (120,000 bytes), QoS 1, one publisher and one subscriber.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measuring.kernel_figures import cpu_seconds
from benchmarks.measuring.processes import end

from apiary.bus.broker import find_mosquitto, speaks_mqtt
from apiary.bus.bus import Connected, Received
from apiary.bus.mqtt import MqttBus
from apiary.settings import BrokerSettings

PORT = 21_884
LOADS = ((200, 20_000), (120_000, 2_000))
"""Bytes of a message, and how many."""
LATEST_S = 120.0


def main() -> None:
    heads = ("bytes", "messages", "log", "mosquitto", "filter", "us each", "seconds")
    print(" ".join(f"{head:>9}" for head in heads))
    for size, count in LOADS:
        for denials in (False, True, False, True):
            broker_s, filter_s, took_s = measure(size, count, denials=denials)
            each = (broker_s + filter_s) / count * 1e6
            row = (size, count, "denials" if denials else "plain", f"{broker_s:.2f}", f"{filter_s:.2f}",
                   f"{each:.1f}", f"{took_s:.2f}")  # fmt: skip
            print(" ".join(f"{cell:>9}" for cell in row))


def measure(size: int, count: int, *, denials: bool) -> tuple[float, float, float]:
    """Processor seconds of the broker and of the filter, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "acl").write_text("topic readwrite #\npattern readwrite #\n")
        debug = "log_type debug\n" if denials else ""
        (folder / "conf").write_text(
            "user root\nlog_type error\nlog_type warning\nlog_type notice\nlog_type information\n"
            f"{debug}log_dest stderr\nset_tcp_nodelay true\nmax_queued_messages 10000\n"
            f"listener {PORT} 127.0.0.1\nallow_anonymous true\nacl_file {folder / 'acl'}\n"
        )
        read, write = os.pipe()
        words = [str(Path(sys.executable).with_name("apiary")), "broker-log", str(folder / "acl")]
        log = subprocess.Popen(words if denials else ["cat"], stdin=read, stdout=subprocess.DEVNULL)
        broker = subprocess.Popen([str(find_mosquitto()), "-c", folder / "conf"], stderr=write)
        os.close(read)
        os.close(write)
        try:
            until("the broker answers", lambda: speaks_mqtt("127.0.0.1", PORT), 0.05)
            before, began = (cpu_seconds(broker.pid), cpu_seconds(log.pid)), time.monotonic()
            pump(size, count)
            time.sleep(0.3)
            took_s = time.monotonic() - began - 0.3
            return cpu_seconds(broker.pid) - before[0], cpu_seconds(log.pid) - before[1], took_s
        finally:
            # The log's side ends with its input.
            end(broker)
            try:
                log.wait(10)
            except subprocess.TimeoutExpired:
                log.kill()
                log.wait()


def pump(size: int, count: int) -> None:
    """`count` messages through the broker, all of them received."""
    here, there = (MqttBus(BrokerSettings(port=PORT), f"bench-{n}") for n in range(2))
    there.subscribe("bench")
    connected = sent = got = 0
    payload = b"x" * size

    def both_there() -> bool:
        nonlocal connected
        connected += sum(isinstance(e, Connected) for bus in (here, there) for e in bus.poll(0.05))
        return connected >= 2

    def all_through() -> bool:
        nonlocal sent, got
        while sent < count and sent - got < 200:
            here.publish("bench", payload)
            sent += 1
        here.poll(0.001)
        got += sum(isinstance(e, Received) for e in there.poll(0.001))
        return got >= count

    try:
        until("both clients are connected", both_there)
        there.poll(0.3)
        until("all messages have come", all_through)
    finally:
        for bus in (here, there):
            bus.close()


def until(what: str, done: Callable[[], bool], pause_s: float = 0.0) -> None:
    """Ask again and again."""
    latest = time.monotonic() + LATEST_S
    while not done():
        if time.monotonic() > latest:
            raise SystemExit(f"not within {LATEST_S:.0f} s: {what}")
        time.sleep(pause_s)


if __name__ == "__main__":
    main()
