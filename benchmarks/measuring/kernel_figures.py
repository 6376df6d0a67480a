"""What the kernel says of a process: its memory now and at its peak."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Resident memory in MB (10**6 bytes): at the peak (VmHWM), and now (VmRSS)."""

    peak: float
    now: float


def memory(pid: int) -> Memory | None:
    """Memory of a process from /proc/PID/status; None where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    kib = {k: int(v.split()[0]) for k, _, v in (line.partition(":") for line in lines) if k in _FIELDS}
    return Memory(*(kib[f] * 1024 / 1e6 for f in _FIELDS)) if len(kib) == len(_FIELDS) else None


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all its threads, in user and kernel; 0 where it is gone."""
    return _ticks(pid, 11)


def waited_cpu_seconds(pid: int) -> float:
    """The same of all its children that have ended and were waited for, and of theirs."""
    return _ticks(pid, 13)


def children(pid: int) -> list[int]:
    """Process ids of a process' children."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text().split()]
        except OSError:
            continue  # the thread has ended meanwhile
    return found


_FIELDS = ("VmHWM", "VmRSS")


def cpu_of(coordinator: int, others: list[int]) -> dict[str, float]:
    """Processor time so far of the coordinator, of a broker among `others`, and of the rest, the nodes."""
    used = {"coordinator": cpu_seconds(coordinator), "broker": 0.0, "nodes": 0.0}
    for pid in others:
        if pid != coordinator:
            used["broker" if _is_broker(pid) else "nodes"] += cpu_seconds(pid)
    return used


def per_round(before: dict[str, float], after: dict[str, float], rounds: int) -> dict[str, float]:
    """What each party used in a round between two readings."""
    return {who: (after[who] - before[who]) / rounds for who in before} if rounds else {}


def _ticks(pid: int, first: int) -> float:
    """User and system time in seconds: two fields of /proc/PID/stat, counted from after the name."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[first]) + int(fields[first + 1])) / os.sysconf("SC_CLK_TCK")


def _is_broker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "mosquitto"
    except OSError:
        return False


def peak(pid: int) -> float:
    """MB that a process held at most; 0 once it has ended."""
    found = memory(pid)
    return found.peak if found else 0.0
