"""`apiary nodes`: every node in a table, from what the broker holds of it."""

import argparse
import json
from collections import Counter
from typing import Any, Final, get_args

from apiary.errors import ApiaryError, SettingsError
from apiary.settings import Settings
from apiary.tags import as_text, matches, parse_rule
from apiary.wire.messages import NodeState
from apiary_cli.client.asking import ask
from apiary_cli.client.watching import watch
from apiary_cli.terminal.flags import add_broker, settings_of
from apiary_cli.terminal.table import duration, table
from apiary_cli.terminal.view import NodeView, RunView

EXAMPLES = """examples:
  apiary nodes
  apiary nodes --tag site=north --state lost
  apiary nodes --sort temperature
  apiary nodes --json | jq -r '.nodes[] | select(.samples < 20) | .id'
"""
_SORTS: Final = ("id", "state", "samples", "release", "temperature", "seen")
_ASK_S: Final = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Every node: what it is at and why, its pictures, tags, the model it predicts with, release and "
        "temperature. When it was last seen is asked of the coordinator, and left out where none answers."
    )
    add_broker(parser)
    parser.add_argument("--sort", choices=_SORTS, default="id", help="default: id; the largest first")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG=VALUE", help="these alone")
    parser.add_argument("--state", choices=get_args(NodeState), help="these alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print them. Raises ApiaryError."""
    try:
        for rule in args.tag:
            parse_rule(rule)
    except ValueError as e:
        raise SettingsError(f"--tag: {e}") from None
    settings = settings_of(args)
    found = collect(settings)
    chosen = [
        node
        for node in sort(found, args.sort)
        if matches(node["tags"], args.tag) and args.state in (None, node["state"])
    ]
    if args.json:
        print(json.dumps({"federation": settings.federation, "nodes": chosen}))
    else:
        print(render(chosen, len(found)))
    return 0


def collect(settings: Settings) -> list[dict[str, Any]]:
    """Every node as plain JSON values. Raises BusError."""
    view = RunView()
    with watch(settings) as watcher:
        for seen in watcher.retained():
            view.take(*seen)
    ages = _ages(settings) if view.coordinator == "online" and view.nodes else {}
    return [describe(node, one, ages.get(node)) for node, one in view.nodes.items()]


def describe(node: str, view: NodeView, seen_s: float | None) -> dict[str, Any]:
    """One node; a key without a value is None, so that scripts find every key."""
    status, health, release = view.status, view.health, view.release
    return {
        "id": node,
        "state": status.state if status else "unknown",
        "why": status.why if status else None,
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
        "seen_s": seen_s,
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


def render(nodes: list[dict[str, Any]], of: int) -> str:
    """A table for people, and how many are in which state."""
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
            "" if node["temperature_c"] is None else f"{node['temperature_c']:.0f} °C",
            duration(node["seen_s"]),
            node["why"] or "",
        ]
        for node in nodes
    ]
    counts = sorted(Counter(node["state"] for node in nodes).items())
    states = ", ".join(f"{count} {state}" for state, count in counts)
    header = ["NODE", "STATE", "SAMPLES", "UNLABELLED", "TAGS", "MODEL", "RELEASE", "TEMP", "SEEN", "WHY"]
    return f"{table(header, rows)}\n\n{len(nodes)} nodes: {states}"


def _ages(settings: Settings) -> dict[str, float]:
    """How long ago the coordinator heard each node; empty where it does not answer."""
    try:
        found = ask(settings, "node.heard", {}, _ASK_S)
        return {node: round(max(0.0, found["now"] - at), 1) for node, at in found["heard"].items()}
    except (ApiaryError, KeyError, TypeError):
        return {}
