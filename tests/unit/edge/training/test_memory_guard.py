"""The training child's eye on memory: limits on both sides, and a real child that reaches one."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from apiary.errors import DataError
from apiary_edge.health.readings import MB
from apiary_edge.training.memory_guard import (
    FrozenTime,
    MemoryGuard,
    MemoryLimits,
    MemoryUse,
    be_first_to_go,
    limits,
    usage,
)

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
    assert limits(24, None) == MemoryLimits(24 * MB, None, None)


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


def test_who_is_done_during_a_look_is_left_alone_too() -> None:
    told: list[str] = []

    def look() -> MemoryUse:
        guard.stop()
        return FINE

    guard = MemoryGuard(MemoryLimits(0, resident=1), told.append, look=look)
    guard.start()
    guard._thread.join(10)
    assert told == []


def test_who_keeps_the_limits_is_looked_at_again_and_again_and_left_alone() -> None:
    told: list[str] = []
    looks: list[int] = []
    stacks: list[int] = []

    def look() -> MemoryUse:
        looks.append(1)
        stacks.append(stack_bytes())
        if len(looks) == 3:
            guard.stop()
        return FINE

    guard = MemoryGuard(MemoryLimits(0), told.append, look=look)
    guard._frozen.look(time.monotonic() - 1000.0)
    before = threading.stack_size(2**20)
    try:
        guard.start()
        assert threading.stack_size() == 2**20, "threads that begin later have what they had"
    finally:
        threading.stack_size(before)
    guard._thread.join(10)
    assert told == [] and len(looks) == 3
    assert guard._frozen.seconds > 900, "the first look came as late as that"
    assert set(stacks) == {256 * 1024}, "under a limit the usual 8 MB are address space that training lacks"
    assert guard._thread.daemon, "it keeps no process alive"


def stack_bytes() -> int:
    """The size of this thread's stack."""
    libc = ctypes.CDLL(None)
    attributes, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    libc.pthread_self.restype = ctypes.c_ulong
    assert libc.pthread_getattr_np(ctypes.c_ulong(libc.pthread_self()), attributes) == 0
    assert libc.pthread_attr_getstacksize(attributes, ctypes.byref(size)) == 0
    return size.value


def test_a_machine_that_cannot_be_read_is_not_judged() -> None:
    told: list[str] = []

    def look() -> MemoryUse:
        raise FileNotFoundError

    guard = MemoryGuard(MemoryLimits(0, resident=1), told.append, look=look)
    guard.start()
    guard._thread.join(10)
    assert told == [] and not guard._thread.is_alive()


def test_this_process_is_looked_at_where_nothing_else_is_given() -> None:
    told: list[str] = []
    guard = MemoryGuard(MemoryLimits(0, resident=1), told.append)
    guard.start()
    guard._thread.join(10)
    assert [text.split(", ")[1] for text in told] == ["may take 0 MB (edge.guest.max_memory_mb)"]


def test_a_process_asks_to_be_ended_first_where_it_can(tmp_path: Path) -> None:
    be_first_to_go(tmp_path)
    assert (tmp_path / "oom_score_adj").read_text() == "600"
    be_first_to_go(tmp_path / "none")


def test_the_time_awake_lacks_what_was_frozen() -> None:
    guard = MemoryGuard(MemoryLimits(0), lambda why: None)
    before = guard.awake()
    guard._frozen.look(time.monotonic() + 1000.0)
    assert guard.awake() < before - 900.0


def test_looks_that_come_late_are_time_that_the_process_was_frozen() -> None:
    frozen = FrozenTime(100.0)
    assert frozen.seconds == 0.0
    for now in (100.2, 100.5, 102.5):
        frozen.look(now)
        assert frozen.seconds == 0.0, "a busy machine lets a look wait"
    frozen.look(105.0)
    assert frozen.seconds == pytest.approx(2.5 - 0.2)
    frozen.look(105.2)
    frozen.look(115.2)
    assert frozen.seconds == pytest.approx(12.5 - 2 * 0.2)


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
        "print(time.monotonic() - guard.awake(), flush=True)\n"
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
