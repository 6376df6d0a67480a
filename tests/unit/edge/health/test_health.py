"""A machine's health: what the kernel's texts mean, read from a folder of real files, and what is news."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apiary.wire.messages import NodeHealth
from apiary_edge.health import readings
from apiary_edge.health.memory import MemoryRoom
from apiary_edge.health.news import health, is_news
from apiary_edge.health.reader import Reader
from apiary_edge.health.readings import MB, Heat, Readings

MEMINFO = (
    "MemTotal:         945364 kB\nMemFree:           81234 kB\nMemAvailable:     512000 kB\nHugePages: 0\n"
)

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(path: str, text: str) -> None:
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return put


def reader(tmp_path: Path, clock: Callable[[], float] = lambda: 0.0) -> Reader:
    return Reader(tmp_path, clock=clock, root=tmp_path / "root")


def test_a_raspberry_pi(tmp_path: Path, write: Write) -> None:
    write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write("sys/class/thermal/thermal_zone0/temp", "61234\n")
    write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    write("proc/meminfo", MEMINFO)
    write("proc/loadavg", "0.75 0.50 0.25 1/123 4567\n")
    write("proc/uptime", "86400.50 300000.00\n")
    write("proc/self/statm", "20000 10000 3000 1 0 5000 0\n")
    found = reader(tmp_path).read()
    assert found.heat == Heat("cpu-thermal", 61.234)
    assert found.heat.counts and found.under_voltage
    assert (found.memory_total, found.memory_available) == (945364 * 1024, 512000 * 1024)
    assert (found.load, found.uptime_s) == (0.75, 86400.5)
    assert found.service_bytes == 10000 * os.sysconf("SC_PAGE_SIZE")
    assert found.disk_free is not None and found.disk_total is not None
    assert 0 < found.disk_free <= found.disk_total
    message = health(found)
    assert message.throttled == ["under-voltage", "throttled"]
    assert message.throttled_since_boot == ["under-voltage", "throttled"]
    assert (message.temperature_c, message.memory_available_mb) == (61.2, 524)


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    found = Reader(tmp_path / "gone", clock=lambda: 0.0, root=tmp_path / "root").read()
    assert (found.heat, found.throttled, found.memory_available, found.disk_free) == (None, None, None, None)
    assert (found.load, found.uptime_s, found.under_voltage) == (None, None, False)
    assert set(health(found).model_dump(exclude_none=True)) <= {"v", "cores"}


def test_this_machine(tmp_path: Path) -> None:
    found = Reader(tmp_path, clock=lambda: 0.0).read()
    assert found.memory_available is not None and found.memory_total is not None
    assert found.memory_available <= found.memory_total
    assert found.uptime_s is not None and found.uptime_s > 0
    assert found.service_bytes is not None and found.service_bytes > 10 * MB


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        ([("acpitz", "27800"), ("x86_pkg_temp", "71000"), ("cpu-thermal", "50000")], ("cpu-thermal", 50.0)),
        ([("soc_max_thermal", "50000"), ("gpu-thermal", "80000")], ("soc_max_thermal", 50.0)),
        ([("gpu-thermal", "70000"), ("modem", "75000")], ("modem", 75.0)),
        ([("cpu-thermal", "-274000"), ("gpu-thermal", "45000")], ("gpu-thermal", 45.0)),
        ([("cpu-thermal", "")], None),
        ([], None),
    ],
)
def test_the_zone_of_the_chip_is_told(
    zones: list[tuple[str, str]], expected: tuple[str, float] | None
) -> None:
    found = readings.hottest(zones)
    assert (found and (found.zone, found.celsius)) == expected


def test_the_heat_of_a_pc_is_told_and_no_rule_is_about_it() -> None:
    assert not Heat("x86_pkg_temp", 95.0).counts and not Heat("acpitz", 95.0).counts
    assert Heat("cpu-thermal", 95.0).counts


@pytest.mark.parametrize(
    ("text", "value"),
    [("0\n", 0), ("50005", 0x50005), ("throttled=0x50000\n", 0x50000), ("", None), ("VCHI error", None)],
)
def test_throttling_is_read_from_the_file_and_from_the_program(text: str, value: int | None) -> None:
    assert readings.throttled(text) == value


def test_each_bit_has_its_word_now_and_since_the_boot() -> None:
    words = list(readings.THROTTLE_BITS.values())
    for bit, word in enumerate(words):
        assert readings.flags(1 << bit) == ([word], [])
        assert readings.flags(1 << (bit + 16)) == ([], [word])
    assert readings.flags(0xF000F) == (words, words)


def vcgencmd(tmp_path: Path, script: str) -> None:
    program = tmp_path / "root/usr/bin/vcgencmd"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_where_the_kernel_has_no_file_the_firmwares_program_is_asked_and_not_waited_for(
    tmp_path: Path,
) -> None:
    vcgencmd(tmp_path, f'echo "$@" > {tmp_path}/asked; echo throttled=0x50005')
    machine = reader(tmp_path)
    assert machine.read().throttled is None
    for _ in range(1000):
        if (throttled := machine.read().throttled) is not None:
            break
        time.sleep(0.01)
    assert throttled == 0x50005
    assert (tmp_path / "asked").read_text() == "get_throttled\n"
    machine.close()


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    vcgencmd(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    now = [0.0]
    machine = reader(tmp_path, lambda: now[0])
    machine.read()
    asked = machine._firmware._asked
    assert asked is not None
    now[0] = 6.0
    assert machine.read().throttled is None
    assert asked.returncode is not None
    machine.close()


@pytest.mark.parametrize(
    ("cgroup", "files", "available"),
    [
        ("0::/\n", {}, 512000 * 1024),
        ("0::/a/b\n", {"a/b": ("max", "1000", "")}, 512000 * 1024),
        ("0::/a/b\n", {"a/b": ("100000000", "40000000", "inactive_file 5000000")}, 65_000_000),
        ("0::/a/b\n", {"a/b": ("300000000", "0", ""), "a": ("200000000", "150000000", "")}, 50_000_000),
        ("0::/a/b\n", {"a/b": ("100", "200", "")}, 0),
        ("0::/../../a\n", {"a": ("90000000", "0", "")}, 90_000_000),
    ],
)
def test_limits_of_control_groups_count(
    tmp_path: Path, write: Write, cgroup: str, files: dict[str, tuple[str, str, str]], available: int
) -> None:
    write("proc/meminfo", MEMINFO)
    write("proc/self/cgroup", cgroup)
    for path, texts in files.items():
        for name, text in zip(("memory.max", "memory.current", "memory.stat"), texts, strict=True):
            write(f"sys/fs/cgroup/{path}/{name}", text + "\n")
    assert MemoryRoom(tmp_path / "root").available() == available


def test_limits_of_control_groups_version_1_count(tmp_path: Path, write: Write) -> None:
    write("proc/self/cgroup", "9:memory:/a\n3:cpu,cpuacct:/a\n0::/\n")
    for path, limit in (("a", 80_000_000), ("", 0x7FFFFFFFFFFFF000)):
        write(f"sys/fs/cgroup/memory/{path}/memory.limit_in_bytes", f"{limit}\n")
        write(f"sys/fs/cgroup/memory/{path}/memory.usage_in_bytes", "30000000\n")
    assert MemoryRoom(tmp_path / "root").available() == 50_000_000


def test_a_torn_file_of_the_kernel_is_no_reading(tmp_path: Path, write: Write) -> None:
    write("proc/meminfo", "MemAvailable:\nMemTotal: lots kB\n\xff\n:\n")
    write("proc/loadavg", "\n")
    write("sys/class/thermal/thermal_zone0/temp", "hot\n")
    found = reader(tmp_path).read()
    assert (found.memory_available, found.memory_total, found.load, found.heat) == (None, None, None, None)


# -- news

BEFORE = NodeHealth(
    temperature_c=60.0, throttled=[], memory_available_mb=500, disk_free_mb=1000, load=0.5, uptime_s=100
)


@pytest.mark.parametrize(
    ("changed", "news"),
    [
        ({}, False),
        ({"uptime_s": 200}, False),
        ({"temperature_c": 61.9}, False),
        ({"temperature_c": 62.0}, True),
        ({"temperature_c": None}, True),
        ({"memory_available_mb": 451}, False),
        ({"memory_available_mb": 450}, True),
        ({"disk_free_mb": 951}, False),
        ({"disk_free_mb": 950}, True),
        ({"load": 0.99}, False),
        ({"load": 1.0}, True),
        ({"throttled_since_boot": ["throttled"]}, True),
    ],
    ids=str,
)
def test_what_changed_enough_is_news(changed: dict[str, object], news: bool) -> None:
    after = BEFORE.model_copy(update=changed)
    assert is_news(BEFORE, after, silent_s=30.0, every_s=30.0) is news
    assert not is_news(BEFORE, after, silent_s=29.9, every_s=30.0)


def test_the_first_word_and_an_alarm_do_not_wait() -> None:
    assert is_news(None, BEFORE, silent_s=0.0, every_s=30.0)
    alarm = BEFORE.model_copy(update={"throttled": ["under-voltage"]})
    assert is_news(BEFORE, alarm, silent_s=5.0, every_s=30.0)
    assert not is_news(BEFORE, alarm, silent_s=4.9, every_s=30.0)


def test_a_message_can_be_made_of_any_readings() -> None:
    message = health(Readings(throttled=0xFFFFFFFF, load=1e9, memory_available=0))
    assert NodeHealth.decode(message.encode(), who="test") == message
