"""`apiary node`: have nodes pause, resume, drain, retrain, or send their log, through the coordinator."""

import argparse
import json
import sys
from typing import Any, Final

from apiary.errors import RequestRefused
from apiary.printable import printable
from apiary_cli.client.asking import ask
from apiary_cli.terminal.flags import add_broker, seconds, settings_of
from apiary_cli.terminal.table import table

EXAMPLES = """examples:
  apiary node pause pi-7                     it leaves the round and begins none; stays so after a restart
  apiary node pause site=north               every node with this tag
  apiary node drain pi-7 --timeout 600       finish and send what it has in hand, then pause
  apiary node resume all
  apiary node retrain pi-7                   let it train the present round again, which it gave up
  apiary node logs pi-7 --lines 100
  apiary node pause all --json | jq '.nodes | map_values(.state)'

exit codes: 0 every node did it, 4 no broker or no coordinator,
            10 a node refused, was not there, did not answer, or was not finished in time
"""
_COMMANDS: Final = {
    "pause": "leave the round, and begin none until resumed",
    "resume": "take part again",
    "drain": "begin no round; finish and send what is in hand, then pause",
    "retrain": "forget that it answered or gave up the present round",
    "logs": "the last lines of its log, without paths of pictures",
}
_WAIT_S: Final = 15.0
_SLACK_S: Final = 15.0
"""For the way to the coordinator and back, beside what the nodes are given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Tell nodes what to do; each answers for itself."
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, text in _COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("nodes", nargs="+", metavar="NODE|TAG=VALUE|all", help="whom; several may be named")
        add_broker(sub)
        sub.add_argument(
            "--timeout", type=seconds, metavar="S", help="give each so long (default: %(default)g)"
        )
        sub.set_defaults(timeout=600.0 if name == "drain" else _WAIT_S)
        if name == "logs":
            sub.add_argument("--lines", type=int, default=50, metavar="N", help="of each (default: 50)")
        sub.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 where every node did it. Raises ApiaryError."""
    settings = settings_of(args)
    options = {"nodes": args.nodes, "timeout_s": args.timeout}
    if args.what == "logs":
        options["lines"] = args.lines
    reply = ask(settings, f"node.{args.what}", options, args.timeout + _SLACK_S, _progress(args))
    print(json.dumps(reply) if args.json else render(args.what, reply))
    good = all(one["state"] == "done" for one in reply["nodes"].values())
    return 0 if good else RequestRefused.exit_code


def render(what: str, reply: dict[str, Any]) -> str:
    """The answers for people: a table, or the logs one after another."""
    nodes: dict[str, dict[str, Any]] = reply["nodes"]
    if what == "logs":
        return "\n".join(line for node, one in nodes.items() for line in _log(node, one, len(nodes)))
    rows = [[node, one["state"], one.get("why") or _result(one.get("result"))] for node, one in nodes.items()]
    return table(["NODE", "ANSWER", ""], rows)


def _log(node: str, one: dict[str, Any], of: int) -> list[str]:
    if one["state"] != "done":
        return [f"{node}: {one['state']}: {one.get('why', '')}"]
    lines = [printable(str(line)) for line in one["result"]["lines"]]
    return lines if of == 1 else [f"{node}: {line}" for line in lines]


def _result(result: Any) -> str:
    if not isinstance(result, dict):
        return "" if result is None else str(result)
    shown = {key: value for key, value in result.items() if value not in (None, False)}
    if set(shown) == {"state"}:
        return str(shown["state"])
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


def _progress(args: argparse.Namespace) -> Any:
    """Who is still awaited, on the terminal alone."""

    def show(result: Any) -> None:
        if isinstance(result, dict) and sys.stderr.isatty() and not args.json:
            states = [one["state"] for one in result["nodes"].values()]
            left = sum(state in ("sent", "working") for state in states)
            print(f"{len(states) - left} of {len(states)} nodes have answered", file=sys.stderr)

    return show
