"""`apiary release`: roll a model out to the fleet, watch it, stop it, go back. Asks the coordinator."""

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from apiary.errors import NoAnswer, PublishError
from apiary_cli.client.asking import ask
from apiary_cli.terminal.flags import add_request, settings_of
from apiary_cli.terminal.table import share, table

EXAMPLES = """examples:
  apiary release create latest                         the newest run: its .eim if there is one
  apiary release create 20261120-125636-3e53 --kind tflite --int8 --wait
  apiary release create --file /srv/model.eim --name hats-3
  apiary release status
  apiary release pause                                 open no further wave; resume goes on
  apiary release abort                                 everyone back to the release before
  apiary release rollback                              the same when it is out; or: rollback NAME
  apiary release pin hats-2 --node pi-7                or --tag site=north; unpin takes it away

A release goes to a few nodes first. Each tests it on its own held-out pictures before it predicts with it;
too many failures halt it and take it back by themselves. docs/releases.md has the whole story.
exit codes: 0 done, 4 no broker or no coordinator, 9 with --wait: halted or aborted,
            10 refused by the coordinator
"""
_LOOK_S: Final = 1.0
_AWAY_S: Final = 5.0
"""A coordinator that is started again goes on with the roll-out; so does who waits for it."""
_SLOW_S: Final = 120.0
"""The coordinator's machine starts the program for its labels, or loads the model, when its turn comes."""
_OVER: Final = ("done", "halted", "aborted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Roll a model out to the fleet in waves, watch it, stop it, go back."
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    add = functools.partial(add_request, commands)
    add("list", "every release, the newest last")
    status = add("status", "the roll-out, and how each node stands")
    status.add_argument("--wait", action="store_true", help="stay until it is out, or halted")
    _create_flags(add("create", "begin to roll out a run's model, or a file"))
    add("pause", "open no further wave")
    add("resume", "go on; after a halt or an abort, begin again")
    add("abort", "give it up: everyone goes back to the release before")
    back = add("rollback", "give the whole fleet an earlier release at once")
    back.add_argument("release", nargs="?", metavar="NAME", help="unset: the one before")
    pin = add("pin", "give a node, or the nodes with a tag, this release whatever the roll-out says")
    pin.add_argument("release", metavar="NAME", help="a release, see `apiary release list`")
    for sub in (pin, add("unpin", "take a pin away")):
        whom = sub.add_mutually_exclusive_group(required=True)
        whom.add_argument("--node", metavar="ID", help="this node")
        whom.add_argument("--tag", metavar="TAG=VALUE", help="every node with this tag, such as site=north")
    add("key", "the public key that releases are signed with, for edge.slots.release_key")


def run(args: argparse.Namespace) -> int:
    """0; 9 where it was waited for and halted. Raises ApiaryError."""
    settings = settings_of(args)

    def request(op: str, timeout_s: float | None = None, **options: Any) -> Any:
        given = {key: value for key, value in options.items() if value is not None}
        return ask(settings, f"release.{op}", given, args.timeout or timeout_s)

    reply: dict[str, Any]
    match args.what:
        case "create":
            reply = request("create", max(_SLOW_S, settings.operator.timeout_s), **_create_options(args))
            if args.wait:
                return _follow(request, as_json=args.json)
        case "status" if args.wait:
            return _follow(request, as_json=args.json)
        case "rollback":
            reply = request("rollback", release=args.release)
        case "pin":
            reply = request("pin", release=args.release, node=args.node, tag=args.tag)
        case "unpin":
            reply = request("pin", node=args.node, tag=args.tag)
        case _:
            reply = request(args.what)
    print(json.dumps(reply) if args.json else render(args.what, reply))
    return 0


def render(what: str, reply: dict[str, Any]) -> str:
    """An answer for people."""
    match what:
        case "list":
            return table((), [_row(release) for release in reply["releases"]]) or "nothing was released yet"
        case "status":
            return _status(reply)
        case "pin" | "unpin":
            pins = {**reply["nodes"], **reply["tags"]}
            return "\n".join(f"{key}: {name}" for key, name in sorted(pins.items())) or "nothing is pinned"
        case "key":
            return str(reply["key"])
        case _:
            return _rollout(reply)


def _create_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run in coordinator.runs_dir, or `latest`")
    parser.add_argument(
        "--file", type=Path, metavar="PATH", help=".tflite or .eim on the coordinator's machine, instead"
    )
    parser.add_argument("--name", help="name of the release")
    parser.add_argument("--kind", choices=("eim", "tflite"), help="unset: eim where there is one")
    parser.add_argument("--int8", action="store_true", help="the 8 bit model")
    parser.add_argument("--labels", metavar="A,B,...", help="of a .tflite file, in the model's order")
    parser.add_argument("--new-labels", action="store_true", help="it has other labels, and that is meant")
    parser.add_argument("--min-version", metavar="V", help="nodes with an older Apiary keep what they have")
    parser.add_argument("--expires-days", type=float, metavar="D", help="install it no later than this")
    parser.add_argument("--wait", action="store_true", help="stay until it is out, or halted")


def _create_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "run": args.run if args.file is None else None,
        "file": str(args.file.absolute()) if args.file is not None else None,
        "name": args.name,
        "kind": args.kind,
        "numbers": "int8" if args.int8 else None,
        "labels": args.labels.split(",") if args.labels else None,
        "min_version": args.min_version,
        "expires_days": args.expires_days,
        "relabels": args.new_labels or None,
    }


def _follow(request: Any, *, as_json: bool) -> int:
    """Print what happens until the roll-out is over."""
    printed: set[tuple[float, str]] = set()
    first = True
    while True:
        try:
            reply = request("status")
        except NoAnswer as e:
            if first:
                raise
            print(f"apiary: {e}; waiting for it", file=sys.stderr)
            time.sleep(_AWAY_S)
            continue
        lines = [(n["at"], n["text"]) for n in reply["history"]]
        if first and reply["rollout"] is None and not as_json:
            print("nothing was released yet; waiting for a roll-out to begin (Ctrl-C ends this)", flush=True)
        if first:
            printed.update(lines[:-1])
            first = False
        for line in lines:
            if line not in printed and not as_json:
                print(f"{time.strftime('%H:%M:%S', time.localtime(line[0]))}  {line[1]}", flush=True)
        printed.update(lines)
        rollout = reply["rollout"]
        if rollout is not None and rollout["state"] in _OVER:
            if as_json:
                print(json.dumps(reply))
            return PublishError.exit_code if rollout["state"] != "done" else 0
        time.sleep(_LOOK_S)


def _row(release: dict[str, Any]) -> list[str]:
    return [
        "*" if release["current"] else " ",
        release["name"],
        release["kind"],
        release["outcome"],
        share(release.get("accuracy")),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(release["created"])),
        release["file"]["digest"][:12],
    ]


def _rollout(reply: dict[str, Any]) -> str:
    release = reply["release"]
    line = (
        f"{release['name']} ({release['kind']}): {reply['state']}, wave {reply['wave']} of {reply['waves']}, "
        f"{reply['healthy']} of {reply['members']} nodes of it healthy"
    )
    if reply["stable"] is not None and reply["state"] != "done":
        line += f"; the rest has {reply['stable']}"
    return f"{line}\n  {reply['why']}" if reply["why"] else line


def _status(reply: dict[str, Any]) -> str:
    if reply["rollout"] is None:
        return "nothing was released yet"
    lines = [_rollout(reply["rollout"]), ""]
    rows = []
    for node, one in reply["nodes"].items():
        accuracy, before = one.get("accuracy"), one.get("accuracy_before")
        figures = "" if accuracy is None else f"{accuracy:.1%} on {one['pictures']} pictures"
        if before is not None:
            figures += f" (before {before:.1%})"
        if one.get("inference_ms") is not None:
            figures += f", {one['inference_ms']:.1f} ms"
        extra = ["" if one["here"] else "not here", "pinned" if one["pinned"] else "", one.get("why") or ""]
        rest = "; ".join(part for part in (figures.strip(", "), *extra) if part)
        rows.append([f"  {node}", one["verdict"], f"has {one.get('current') or 'none'}", rest])
    lines.append(table((), rows))
    pins = {**reply["pins"]["nodes"], **reply["pins"]["tags"]}
    lines += [f"  pinned: {key} to {name}" for key, name in sorted(pins.items())]
    lines.append("")
    for noted in reply["history"][-8:]:
        lines.append(f"{time.strftime('%H:%M:%S', time.localtime(noted['at']))}  {noted['text']}")
    return "\n".join(lines)
