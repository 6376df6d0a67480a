"""`apiary nodes`: every node in a table, from what the broker holds of it."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

from apiary.errors import ApiaryError, BusError, DataError, SettingsError
from apiary.files import write_json
from apiary.settings import Settings
from apiary.tags import as_text, matches, parse_rule
from apiary.wire.messages import NodeState
from apiary_cli.client.asking import ask
from apiary_cli.client.watching import watch
from apiary_cli.simulation.profiling import of_run
from apiary_cli.terminal.flags import add_broker, print_result, settings_of
from apiary_cli.terminal.table import duration, table
from apiary_cli.terminal.view import NodeView, RunView
from apiary_coordinator.fleet.roster import SILENT
from apiary_coordinator.fleet.versions import describe as describe_versions
from apiary_coordinator.report.history_file import NAME as RECORD
from apiary_coordinator.report.history_file import read_history

EXAMPLES = """examples:
  apiary nodes
  apiary nodes --tag site=north --state lost
  apiary nodes --sort temperature
  apiary nodes --json | jq -r '.nodes[] | select(.samples < 20) | .id'
  apiary nodes --profile fleet.json --run runs/autumn   its nodes for `apiary simulate`, without a broker
"""
_SORTS: Final = ("id", "state", "samples", "release", "temperature", "seen")
_ASK_S: Final = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Every node: what it is at and why, its pictures, tags, the model it predicts with, release, version "
        "and temperature. When it was last seen, whether it is silent and why it is not drawn come from "
        "the coordinator, and is left out where none answers."
    )
    add_broker(parser)
    parser.add_argument("--sort", choices=_SORTS, default="id", help="default: id; the largest first")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG=VALUE", help="these alone")
    parser.add_argument("--state", choices=(*get_args(NodeState), SILENT), help="these alone")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="write shares, paces and links of a run's nodes, for `apiary simulate --profile`",
    )
    parser.add_argument("--run", metavar="RUN", help="of --profile: name or folder of the run (the newest)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print them. Raises ApiaryError."""
    try:
        for rule in args.tag:
            parse_rule(rule)
    except ValueError as e:
        raise SettingsError(f"--tag: {e}") from None
    settings = settings_of(args)
    if args.profile is not None:
        return _profile(args, settings)
    if args.run is not None:
        raise SettingsError("--run names the run of a profile: give --profile FILE, too")
    found, version = collect(settings)
    chosen = [
        node
        for node in sort(found, args.sort)
        if matches(node["tags"], args.tag) and args.state in (None, node["state"])
    ]
    if args.json:
        print(json.dumps({"federation": settings.federation, "nodes": chosen}))
    else:
        print(render(chosen, len(found), version))
    return 0


def _profile(args: argparse.Namespace, settings: Settings) -> int:
    """Write the profile of a run's nodes, and say what is in it. Raises DataError, StoreError."""
    folder = _run_folder(settings, args.run)
    profile = of_run(read_history(folder))
    versions = {}
    with suppress(BusError):  # the record has all but the versions
        versions = {node["id"]: node["version"] for node in collect(settings)[0]}
    nodes = [node.model_copy(update={"version": versions.get(node.id)}) for node in profile.nodes]
    profile = profile.model_copy(update={"nodes": nodes})
    write_json(args.profile, profile.model_dump(mode="json"), indent=2)
    paces = [node.pace_s for node in nodes if node.pace_s is not None]
    result = {"profile": str(args.profile), "run": folder.name, "nodes": len(nodes), "timed": len(paces)}
    line = f"{args.profile}: {len(nodes)} nodes of run {folder.name}, {len(paces)} with their pace"
    print_result(args, result, line + (f" (median {median(paces):.3g} s a sample)" if paces else ""))
    return 0


def _run_folder(settings: Settings, run: str | None) -> Path:
    """A run's folder by name or path; without one the newest with a record. Raises DataError."""
    runs = settings.coordinator.runs_dir
    if run is not None:
        return next((p for p in (Path(run), runs / run) if (p / RECORD).is_file()), Path(run))
    records = sorted(runs.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise DataError(f"{runs} holds no run: name one with --run, where its folder is")
    return records[-1].parent


def collect(settings: Settings) -> tuple[list[dict[str, Any]], str]:
    """Every node as plain JSON values, and the coordinator's version. Raises BusError."""
    view = RunView()
    with watch(settings) as watcher:
        for seen in watcher.retained():
            view.take(*seen)
    heard = _heard(settings) if view.coordinator == "online" and view.nodes else Heard()
    return [describe(node, one, heard) for node, one in view.nodes.items()], view.version


@dataclass(frozen=True, slots=True)
class Heard:
    """What only the coordinator knows: seconds since a node was heard, who is silent, who is not drawn."""

    ages: Mapping[str, float] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    unfit: Mapping[str, str] = field(default_factory=dict)


def describe(node: str, view: NodeView, heard: Heard) -> dict[str, Any]:
    """One node; a key without a value is None, so that scripts find every key."""
    status, health, release = view.status, view.health, view.release
    state: str = status.state if status else "unknown"
    if node in heard.silent and state != "lost":
        state = SILENT
    why = status.why if status else None
    return {
        "id": node,
        "state": state,
        "why": "; ".join(text for text in (why, heard.unfit.get(node)) if text) or None,
        "samples": status.samples if status else None,
        "labels": status.labels if status else None,
        "waiting": status.waiting if status else None,
        "also_held_out": status.also_held_out if status else None,
        "tags": status.tags if status else {},
        "run": status.run if status else None,
        "round": status.round if status else None,
        "version": status.version if status else None,
        "model": status.model if status else None,
        "release": release.current if release else None,
        "temperature_c": health.temperature_c if health else None,
        "memory_available_mb": health.memory_available_mb if health else None,
        "disk_free_mb": health.disk_free_mb if health else None,
        "seen_s": heard.ages.get(node),
    }


def sort(nodes: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """By a column, then by id; figures with the largest first, what is not known last."""
    key = {"temperature": "temperature_c", "seen": "seen_s"}.get(by, by)

    def place(node: dict[str, Any]) -> tuple[Any, ...]:
        value = node[key]
        if value is None:
            return (1, 0, node["id"])
        return (0, -value if isinstance(value, int | float) else value, node["id"])

    return sorted(nodes, key=place)


def render(nodes: list[dict[str, Any]], of: int, version: str = "") -> str:
    """A table for people, how many are in which state, and who runs another version than the coordinator."""
    if not nodes:
        return "no node was heard of" if not of else f"none of {of} nodes is like that"
    rows = [
        [
            node["id"],
            node["state"],
            "" if node["samples"] is None else str(node["samples"]),
            str(node["waiting"] or ""),
            as_text(node["tags"]),
            node["model"] or "",
            node["release"] or "",
            node["version"] or "",
            "" if node["temperature_c"] is None else f"{node['temperature_c']:.0f} °C",
            duration(node["seen_s"]),
            "; ".join(filter(None, [node["why"], _leaked(node["also_held_out"])])),
        ]
        for node in nodes
    ]
    counts = sorted(Counter(node["state"] for node in nodes).items())
    states = ", ".join(f"{count} {state}" for state, count in counts)
    figures = ["SAMPLES", "UNLABELLED", "TAGS", "MODEL", "RELEASE", "VERSION", "TEMP", "SEEN"]
    header = ["NODE", "STATE", *figures, "WHY"]
    lines = [table(header, rows), "", f"{len(nodes)} nodes: {states}"]
    versions = {node["id"]: node["version"] for node in nodes if node["version"] not in (None, "", version)}
    if version and versions:
        lines.append(describe_versions(versions, version))
    return "\n".join(lines)


def _leaked(count: int | None) -> str | None:
    return f"{count} of its pictures are held out by the server as well" if count else None


def _heard(settings: Settings) -> Heard:
    """What the coordinator knows, one of 0.1 the ages alone; nothing where none answers."""
    try:
        found = ask(settings, "node.heard", {}, _ASK_S)
        ages = {node: round(max(0.0, found["now"] - at), 1) for node, at in found["heard"].items()}
        return Heard(ages, frozenset(found.get("silent", ())), found.get("unfit", {}))
    except (ApiaryError, KeyError, TypeError):
        return Heard()
