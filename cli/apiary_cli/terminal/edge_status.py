"""`apiary edge status`: the state of this machine's node, for its owner, without any network."""

import json
import time
from typing import Any

from apiary.printable import printable
from apiary.settings import Settings
from apiary_edge.owner import status_file
from apiary_edge.owner.status_file import Found
from apiary_edge.releases.slot import Slot
from apiary_edge.releases.store import current as installed_release
from apiary_edge.releases.store import described

_MAX_ROUNDS = 5


def show(settings: Settings, *, as_json: bool) -> int:
    """Print it; 0 where the node runs, 1 where it does not, or hangs."""
    now = time.monotonic()
    found = status_file.find(settings, now)
    slot = installed_release(settings.edge.state_dir)
    if as_json:
        status: dict[str, Any] = {"running": False, "node": settings.edge.node_id}
        if found is not None:
            state = {"running": found.alive, "hangs": found.hangs}
            status = {**found.status, "slot": slot and described(slot), **state}
        print(json.dumps(status))
    elif found is None:
        places = " or ".join(str(p) for p in status_file.places(settings))
        print(f"node {settings.edge.node_id} has not run here: there is no {places}")
        print("start it with apiary edge, or say which one is meant: --node-id, --state-dir, --config")
    else:
        print(render(found, slot, now))
    return 0 if found is not None and found.alive and not found.hangs else 1


def render(found: Found, slot: Slot | None, now: float) -> str:
    """The same for people, a line a matter."""
    status = found.status
    lines = [("node", f"{status['node']}, version {status['version']}, {_service(found, now)}")]
    lines.append(("state", _and(status.get("state", "unknown"), status.get("why"), ": ")))
    if (now_on := status.get("round")) is not None:
        of = f" of {now_on['of']}" if now_on.get("of") else ""
        progress = _progress(status.get("progress"), found, now)
        lines.append(("round", f"{now_on['number']}{of}, run {now_on['run']}{progress}"))
    labels = status.get("labels") or {}
    each = ", ".join(f"{label} {n}" for label, n in labels.items())
    lines.append(("pictures", _and(f"{status.get('samples') or 0}", each, ": ")))
    if status.get("waiting"):
        lines.append(("", f"{status['waiting']} wait for a label (apiary label, apiary samples label)"))
    if status.get("also_held_out"):
        lines.append(("", f"{status['also_held_out']} are in the server's held-out set as well"))
    if found.alive:
        lines.append(("broker", f"{status['address']}, {_link(status.get('broker') or {}, now)}"))
        coordinator = status.get("coordinator")
        if coordinator is not None:
            run = coordinator.get("run")
            lines.append(("coordinator", _and(coordinator.get("state", ""), run and f"run {run}", ", ")))
    if status.get("health"):
        lines.append(("machine", _machine(status["health"])))
    if slot is not None:
        accuracy = f"accuracy {slot.accuracy:.1%}" if slot.accuracy is not None else None
        lines.append(("model", _and(f"{slot.release} ({slot.kind})", accuracy, ", ")))
    if status.get("camera"):
        lines.append(("camera", _and(status["camera"]["kind"], status["camera"].get("text"), ": ")))
    if status.get("predictions"):
        lines.append(("predictions", str(status["predictions"])))
    if status.get("page"):
        lines.append(("pages", f"{status['page']['url']} (apiary label --qr signs a phone in)"))
    for i, last in enumerate(reversed((status.get("last") or [])[-_MAX_ROUNDS:])):
        lines.append(("last rounds" if i == 0 else "", _last(last)))
    return "\n".join(f"{name:<12} {printable(text)}" for name, text in lines)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `4 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{seconds / 86400:.0f} days"


def _service(found: Found, now: float) -> str:
    if found.hangs:
        ago = duration(found.age_s or 0.0)
        return (
            f"process {found.status['pid']} HANGS: it has been silent for {ago} (journalctl -u apiary-edge)"
        )
    if found.alive:
        return (
            f"running for {duration(now - float(found.status['started_s']))} (process {found.status['pid']})"
        )
    when = "before this machine was started" if found.age_s is None else f"{duration(found.age_s)} ago"
    how = "stopped" if found.stopped else "NOT RUNNING: it ended without a word,"
    return f"{how} {when} (systemctl status apiary-edge)"


def _progress(progress: dict[str, Any] | None, found: Found, now: float) -> str:
    if progress is None or not found.alive:
        return ""
    parts = [f": epoch {progress['epoch']} of {progress['epochs']}"]
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.3f}")
    if "accuracy" in progress:
        parts.append(f"accuracy {progress['accuracy']:.1%}")
    if "left_s" in progress:
        rests = found.status.get("state") == "paused"
        gone = 0.0 if rests else now - float(progress["at_s"])
        parts.append(f"about {duration(max(0.0, progress['left_s'] - gone))} left")
    return ", ".join(parts)


def _link(broker: dict[str, Any], now: float) -> str:
    since = f" for {duration(now - float(broker['since_s']))}" if "since_s" in broker else ""
    if broker.get("connected"):
        return f"connected{since}"
    return _and(f"not connected{since}", broker.get("why"), ": ")


def _machine(health: dict[str, Any]) -> str:
    parts = []
    if "temperature_c" in health:
        parts.append(f"{health['temperature_c']:.0f} °C")
    if "memory_available_mb" in health:
        parts.append(f"{health['memory_available_mb']} of {health.get('memory_mb', '?')} MB memory free")
    if "disk_free_mb" in health:
        parts.append(f"{health['disk_free_mb'] / 1000:.1f} GB disk free")
    if "load" in health:
        parts.append(f"load {health['load']:.2f}")
    if "uptime_s" in health:
        parts.append(f"up {duration(health['uptime_s'])}")
    now, ever = health.get("throttled") or [], health.get("throttled_since_boot") or []
    complaints = [f"NOW {word}" for word in now] + [f"{w} since the boot" for w in ever if w not in now]
    return "; ".join([", ".join(parts), *complaints])


def _last(last: dict[str, Any]) -> str:
    parts = [f"{last['round']} {last['outcome']}"]
    if "samples" in last:
        parts.append(f"{last['samples']} pictures")
    if "seconds" in last:
        parts.append(f"trained {duration(last['seconds'])}")
    if "accuracy" in last:
        parts.append(f"accuracy {last['accuracy']:.1%}")
    return _and(", ".join(parts), last.get("why"), ": ")


def _and(text: str, more: str | None, between: str) -> str:
    return f"{text}{between}{more}" if more else text
