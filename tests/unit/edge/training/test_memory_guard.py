"""The training child's eye on memory: limits on both sides, and a real child that reaches one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from apiary.errors import DataError
from apiary_edge.health.readings import MB
from apiary_edge.training.memory_guard import MemoryGuard, MemoryLimits, MemoryUse, limits, usage

FINE = MemoryUse(resident=100 * MB, address=200 * MB, available=300 * MB)


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (MemoryLimits(0), None),
        (MemoryLimits(300 * MB), None),
        (
            MemoryLimits(301 * MB),
            "training took 100 MB, the machine had 300 MB of memory left; 301 MB are kept for others",
        ),
        (MemoryLimits(0, resident=100 * MB), None),
        (
            MemoryLimits(0, resident=99 * MB),
            "training took 100 MB, may take 99 MB (edge.guest.max_memory_mb)",
        ),
        (MemoryLimits(0, address=208 * MB), None),
        (
            MemoryLimits(0, address=207 * MB),
            "training took 100 MB, its address space 200 MB of 207 MB (RLIMIT_AS, ulimit -v)",
        ),
    ],
)
def test_limits_from_both_sides(bounds: MemoryLimits, why: str | None) -> None:
    assert bounds.broken(FINE) == why


def test_a_machine_that_does_not_say_what_is_available_is_not_judged_by_it() -> None:
    assert MemoryLimits(10**12).broken(MemoryUse(1, 1, None)) is None


def test_this_process_can_be_read() -> None:
    now = usage()()
    assert 10 * MB < now.resident < now.address
    assert now.available is not None
    assert limits(24, 100) == MemoryLimits(24 * MB, 100 * MB, None)


def test_the_reason_is_told_once_and_looking_ends() -> None:
    told: list[str] = []
    heard = threading.Event()

    def give_up(why: str) -> None:
        told.append(why)
        heard.set()

    guard = MemoryGuard(MemoryLimits(0, resident=99 * MB), give_up, look=lambda: FINE)
    guard.start()
    assert heard.wait(10)
    guard._thread.join(10)
    assert len(told) == 1


def test_who_is_done_is_left_alone() -> None:
    told: list[str] = []
    guard = MemoryGuard(MemoryLimits(0, resident=1), told.append, look=lambda: FINE)
    guard.stop()
    guard.start()
    guard._thread.join(10)
    assert told == []


CHILD = """
import sys, time
from apiary_edge.training.memory_guard import MemoryGuard, limits
from apiary_edge.training.worker import give_up
guard = MemoryGuard(limits(0, int(sys.argv[1])), give_up)
guard.start()
held = []
print("ready", flush=True)
for _ in range(2000):
    held.append(bytearray(b"x" * 1_000_000))
    time.sleep(0.005)
"""


def test_a_child_that_grows_declines_with_its_figures_and_is_not_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "150"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == DataError.exit_code
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kind"] == "declined"
    assert "may take 150 MB (edge.guest.max_memory_mb)" in told["text"]


def test_time_that_a_child_was_frozen_does_not_count() -> None:
    code = (
        "import sys, time\n"
        "from apiary_edge.training.memory_guard import MemoryGuard, MemoryLimits\n"
        "guard = MemoryGuard(MemoryLimits(0), print); guard.start()\n"
        "print('ready', flush=True); sys.stdin.readline(); time.sleep(1)\n"
        "print(guard.frozen_s, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(child.pid, signal.SIGCONT)
    out, _ = child.communicate("\n", timeout=30)
    assert float(out) > 2.0
