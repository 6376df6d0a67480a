"""When a node's health is worth a message: what changed enough, and not too often. Pure."""

from typing import Final

from apiary.wire.messages import NodeHealth
from apiary_edge.health.readings import MB, Readings, flags

_STEPS: Final = {"temperature_c": 2.0, "load": 0.5}
"""Smaller changes are no news."""
_SHARES: Final = {"memory_available_mb": 0.1, "disk_free_mb": 0.05, "service_mb": 0.2}
"""The same, of the value before."""
_ALARM_S: Final = 5.0
"""A new flag (under-voltage, throttled) does not wait for the usual pause."""


def health(found: Readings) -> NodeHealth:
    """The message for these readings."""
    now, occurred = flags(found.throttled) if found.throttled is not None else (None, None)
    return NodeHealth(
        temperature_c=round(found.heat.celsius, 1) if found.heat is not None else None,
        throttled=now,
        throttled_since_boot=occurred,
        memory_mb=_mb(found.memory_total),
        memory_available_mb=_mb(found.memory_available),
        disk_mb=_mb(found.disk_total),
        disk_free_mb=_mb(found.disk_free),
        load=found.load,
        cores=found.cores,
        uptime_s=int(found.uptime_s) if found.uptime_s is not None else None,
        service_mb=_mb(found.service_bytes),
    )


def is_news(before: NodeHealth | None, after: NodeHealth, *, silent_s: float, every_s: float) -> bool:
    """Whether to publish `after`, `silent_s` after `before`; at most one in `every_s`, alarms sooner."""
    if before is None:
        return True
    if silent_s >= min(_ALARM_S, every_s) and (before.throttled or []) != (after.throttled or []):
        return True
    return silent_s >= every_s and _differs(before, after)


def _differs(before: NodeHealth, after: NodeHealth) -> bool:
    old, new = before.model_dump(), after.model_dump()
    for name in {*old, *new} - {"v", "uptime_s"}:
        a, b = old.get(name), new.get(name)
        if name in _STEPS or name in _SHARES:
            if (a is None) != (b is None):
                return True
            step = _STEPS.get(name, _SHARES.get(name, 0.0) * abs(a or 0))
            if a is not None and b is not None and abs(b - a) >= max(step, 1e-9):
                return True
        elif a != b:
            return True
    return False


def _mb(size: int | None) -> int | None:
    return round(size / MB) if size is not None else None
