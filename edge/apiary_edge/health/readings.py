"""What the kernel's figures mean: texts of /proc and /sys in, numbers out. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MB: Final = 10**6
THROTTLE_BITS: Final = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""Of the firmware's get_throttled, now; the same 16 bits higher: since the last boot."""
_OCCURRED_SHIFT: Final = 16
_ZONES: Final = ("cpu-thermal", "cpu_thermal", "soc", "cpu", "x86_pkg_temp")
"""Beginnings of the names that kernels give the sensor in the chip, the best first."""
_SELF_GOVERNED: Final = ("x86_pkg_temp", "acpitz", "coretemp")


@dataclass(frozen=True, slots=True)
class Heat:
    """A thermal zone: its type and its temperature in degrees Celsius."""

    zone: str
    celsius: float

    @property
    def counts(self) -> bool:
        """Whether the guest rules are about it: a PC's chip runs at 90 degrees by design."""
        return not self.zone.startswith(_SELF_GOVERNED)


@dataclass(frozen=True, slots=True)
class Readings:
    """A machine at one moment; None where it does not say. Bytes, seconds, degrees Celsius.

    `address_limit` is RLIMIT_AS, which children inherit; `memory_available` takes cgroup limits into
    account.
    """

    heat: Heat | None = None
    throttled: int | None = None
    memory_total: int | None = None
    memory_available: int | None = None
    address_limit: int | None = None
    disk_total: int | None = None
    disk_free: int | None = None
    load: float | None = None
    cores: int | None = None
    uptime_s: float | None = None
    service_bytes: int | None = None

    @property
    def under_voltage(self) -> bool:
        """Whether the supply is too weak at this moment."""
        return bool((self.throttled or 0) & 1)


def flags(throttled: int) -> tuple[list[str], list[str]]:
    """The words for what is so now, and for what has been so since the last boot."""
    now = [word for bit, word in THROTTLE_BITS.items() if throttled >> bit & 1]
    return now, [word for bit, word in THROTTLE_BITS.items() if throttled >> (bit + _OCCURRED_SHIFT) & 1]


def throttled(text: str) -> int | None:
    """`50005` of the firmware's file or `throttled=0x50005` of vcgencmd, both hexadecimal."""
    digits = text.strip().rpartition("=")[2].removeprefix("0x")
    try:
        value = int(digits, 16)
    except ValueError:
        return None
    return value if 0 <= value < 2**32 else None


def hottest(zones: Iterable[tuple[str, str]]) -> Heat | None:
    """Of (type, thousandths of a degree) the zone of the chip; sensors gone mad are left out."""
    found = []
    for kind, text in zones:
        try:
            celsius = int(text) / 1000
        except ValueError:
            continue
        if -40 <= celsius <= 150:
            rank = next((i for i, name in enumerate(_ZONES) if kind.startswith(name)), len(_ZONES))
            found.append((rank, -celsius, Heat(kind, celsius)))
    return min(found, key=lambda z: z[:2])[2] if found else None


def meminfo(text: str) -> Mapping[str, int]:
    """Bytes by name of /proc/meminfo."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def cgroup_room(limit: str, used: str, stat: str) -> int | None:
    """What a memory cgroup still gives, from memory.max, memory.current and memory.stat; None: no limit.

    Pages of files count as used there, though the kernel takes them back when memory is short.
    """
    if is_unlimited(limit) or not used.strip().isdecimal():
        return None
    lines = dict(line.rsplit(" ", 1) for line in stat.splitlines() if " " in line)
    files = sum(int(lines.get(name, "0")) for name in ("inactive_file", "active_file"))
    return max(0, int(limit) - max(0, int(used) - files))


def is_unlimited(limit: str) -> bool:
    """Whether a memory cgroup has no limit: version 2 says "max", version 1 a number near 2**63."""
    return not limit.strip().isdecimal() or int(limit) >= 2**60


def first_float(text: str) -> float | None:
    """The first number of /proc/uptime or /proc/loadavg."""
    try:
        return float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None
