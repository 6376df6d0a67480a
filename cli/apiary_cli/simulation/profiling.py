"""A real fleet's profile for simulations: what its nodes hold, how fast they train, how fast their links are.

Taken from a run's record, of each node from the last round that it contributed to; no node is asked anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Final

from apiary.errors import DataError
from apiary_cli.simulation.fleet import MAX_NODES, FleetProfile, ProfiledNode

_MOST_PAIRS: Final = 300
"""Nodes compared with each other to tell the start from the steps."""
_LEAST_S: Final = 1e-3


@dataclass(frozen=True, slots=True)
class _Seen:
    """A node's last contribution: `slots` samples computed with filler, in `trained_s` of `answered_s`."""

    slots: int
    trained_s: float
    answered_s: float
    up_bytes: int


def of_run(history: Mapping[str, Any]) -> FleetProfile:
    """The profile of the nodes that a run's record (`read_history`) names. Raises DataError without any."""
    try:
        seen = _contributions(history)
        nodes = _nodes(history, seen)
        servers = [
            max(0.0, float(entry["seconds"]) - max(c["seconds"] for c in entry["contributors"].values()))
            for entry in history["rounds"]
            if entry["state"] == "closed" and entry.get("contributors")
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"the record of run {history.get('run')} cannot be read: {e!r}") from None
    if not nodes:
        raise DataError(f"run {history.get('run')}: no round is over yet, its nodes cannot be profiled")
    federation = str(history.get("settings", {}).get("federation", ""))
    server_s = round(median(servers), 3) if servers else None
    return FleetProfile(federation=federation, server_s=server_s, nodes=nodes)


def start_and_pace(seen: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The seconds that all spend before the first step, and the median pace, from `(slots, seconds)` of each.

    The slope between nodes of unlike size is the pace (Theil 1950, Sen 1968); where all are alike, or the
    slope is none, there is no start.
    """
    pairs = combinations(seen[:_MOST_PAIRS], 2)
    slopes = [(t2 - t1) / (n2 - n1) for (n1, t1), (n2, t2) in pairs if n1 != n2]
    pace = median(slopes) if slopes else 0.0
    if pace <= 0:
        return 0.0, median(t / n for n, t in seen)
    start = median(t - pace * n for n, t in seen)
    # The quickest of all has started, too, and has trained for a while.
    start = min(max(0.0, start), 0.9 * min(t for _, t in seen))
    return start, pace


def _contributions(history: Mapping[str, Any]) -> dict[str, _Seen]:
    settings = history["settings"]
    batch = int(settings["run.plan.batch_size"])
    found: dict[str, _Seen] = {}
    for entry in history["rounds"]:
        for node, metrics in (entry.get("node_metrics") or {}).items():
            gave = entry["contributors"].get(node)
            if gave is None:
                continue
            samples = int(gave.get("trained") or gave["samples"])
            epochs = int(metrics.get("epochs") or settings["run.plan.epochs"])
            steps = settings.get("run.plan.steps") or epochs * math.ceil(samples / batch)
            slots = steps * batch
            found[node] = _Seen(slots, float(metrics["seconds"]), float(gave["seconds"]), int(gave["bytes"]))
    return found


def _nodes(history: Mapping[str, Any], seen: Mapping[str, _Seen]) -> list[ProfiledNode]:
    timed = [(one.slots, one.trained_s) for one in seen.values() if one.slots and one.trained_s > 0]
    start_s = start_and_pace(timed)[0] if timed else 0.0
    down = min((int(r["bytes_down"]) for r in history["rounds"] if r.get("bytes_down")), default=0)
    nodes: list[ProfiledNode] = []
    for name, share in list(history["nodes"].items())[:MAX_NODES]:
        one = seen.get(name)
        pace_s = rate = None
        if one is not None and one.trained_s > start_s and one.slots:
            pace_s = (one.trained_s - start_s) / one.slots
            # Down and up on one link: what of each cannot be told apart from here.
            rate = (down + one.up_bytes) / max(_LEAST_S, one.answered_s - one.trained_s)
        nodes.append(
            ProfiledNode(
                id=name,
                labels=share["labels"],
                start_s=round(start_s, 3) if one is not None else None,
                pace_s=float(f"{pace_s:.4g}") if pace_s else None,
                up_bytes_s=round(rate, 1) if rate else None,
                down_bytes_s=round(rate, 1) if rate else None,
                runtime=share.get("runtime") or None,
            )
        )
    return nodes
