"""`apiary status`: what a federation is at, in one look, from what the broker holds."""

import argparse
import json
from typing import Any

from apiary.wire.messages import CoordinatorStatus, Message, ModelManifest
from apiary_cli.client.watching import watch
from apiary_cli.terminal.flags import add_broker, settings_of
from apiary_cli.terminal.table import table
from apiary_cli.terminal.view import NodeView, RunView

EXAMPLES = """examples:
  apiary status --host broker.local
  apiary status --json | jq '.nodes | to_entries[] | select(.value.state == "lost") | .key'

exit codes: 0 a coordinator is online, 1 none is, 4 no broker
"""
_ANNOUNCED = {"run", "round", "rounds", "state"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "The coordinator, the round, the last result, and every node, at this moment."
    add_broker(parser)
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print it; 0 where a coordinator is online, 1 where none is."""
    settings = settings_of(args)
    view, rest = RunView(), dict[type[Message], Message]()
    with watch(settings) as watcher:
        for kind, node, message in watcher.retained():
            view.take(kind, node, message)
            rest[type(message)] = message
    report = describe(settings.federation, view, rest)
    print(json.dumps(report) if args.json else render(report))
    return 0 if report["coordinator"]["state"] == "online" else 1


def describe(federation: str, view: RunView, rest: dict[type[Message], Message]) -> dict[str, Any]:
    """The federation as plain JSON values."""
    coordinator, model = rest.get(CoordinatorStatus), rest.get(ModelManifest)
    last = view.results[-1] if view.results else None
    announced = view.round
    return {
        "federation": federation,
        "coordinator": _dump(coordinator) if coordinator else {"state": "unknown"},
        "round": announced.model_dump(mode="json", include=_ANNOUNCED) if announced else None,
        "last": _dump(last) if last else None,
        "model": _dump(model) if model else None,
        "nodes": {name: _node(node) for name, node in sorted(view.nodes.items())},
    }


def render(report: dict[str, Any]) -> str:
    """The same for people."""
    coordinator, now, last = report["coordinator"], report["round"], report["last"]
    lines = [f"federation   {report['federation']}"]
    run = f", run {coordinator['run']}" if coordinator.get("run") else ""
    lines.append(f"coordinator  {coordinator['state']}{run}")
    if now is not None:
        lines.append(f"round        {_round(now, last)}")
    if last is not None:
        lines.append(f"last round   {last['round']} of run {last['run']}{_ended(last)}")
    lines.append(f"nodes        {len(report['nodes'])}")
    rows = []
    for name, node in report["nodes"].items():
        reasons = [node["why"]] if node.get("why") else []
        reasons += node.get("health", {}).get("throttled", [])
        # A lost node reports no number, which is not the same as none.
        pictures = f"{node['samples']:>5} pictures" if node.get("samples") is not None else ""
        rows.append([f"  {name}", f"{node['state']:<9}", pictures, "  ".join(reasons)])
    return "\n".join([*lines, table((), rows)]).rstrip()


def _round(now: dict[str, Any], last: dict[str, Any] | None) -> str:
    """The announced round; between two rounds the announcement is still that of the one before."""
    if now["state"] == "finished":
        return f"none: run {now['run']} is over after {now['round']} of {now['rounds']}"
    over = last is not None and (last["run"], last["round"]) == (now["run"], now["round"])
    state = f"{last['state']}; the next one has not begun" if last is not None and over else now["state"]
    return f"{now['round']} of {now['rounds']} of run {now['run']}, {state}"


def _ended(last: dict[str, Any]) -> str:
    if last["state"] != "closed":
        return f" failed: {last.get('why', '')}"
    return (
        f": accuracy {last['accuracy']:.1%}, loss {last['loss']:.3f}, "
        f"{last['n_contributors']} updates, {last['seconds']:.1f} s"
    )


def _node(node: NodeView) -> dict[str, Any]:
    report = _dump(node.status) if node.status is not None else {"state": "unknown"}
    return {**report, "health": _dump(node.health)} if node.health is not None else report


def _dump(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json", exclude_none=True, exclude={"v"})
