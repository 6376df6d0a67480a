"""`apiary run`: have the coordinator begin a run, stop it, list runs, show one. Asks the coordinator."""

import argparse
import functools
import json
import time
from typing import Any, Final

from apiary.errors import SettingsError
from apiary_cli.client.asking import ask
from apiary_cli.terminal.flags import add_request, settings_of
from apiary_cli.terminal.table import duration, share, table

EXAMPLES = """examples:
  apiary run start                                     with the coordinator's own [run] settings
  apiary run start --name autumn --rounds 20 --set run.plan.epochs=4
  apiary run start --set 'run.only=["site=north"]'     on the nodes with this tag alone
  apiary run list
  apiary run show                                      the run under way, or else the newest
  apiary run stop                                      end it with the best model so far
  apiary run stop autumn                               the same, or take it out of the queue
  apiary run show autumn --json | jq '.results[].accuracy'

The coordinator must stay up (apiary coordinator --stay) for runs to be started.
exit codes: 0 done, 4 no broker or no coordinator, 10 refused by the coordinator
"""
_PREFIX: Final = "run."
_FLAGS: Final = ("rounds", "min_nodes", "target_accuracy", "seed", "start_from")
_NEVER_BEGAN: Final = ("waiting", "withdrawn")
"""States of runs whose time is that of the request."""
_OURS: Final = ("broker.", "operator.", "security.", "federation", "root", "blob_root")
"""Settings of whoever asks."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Begin, stop, list and show the runs of a coordinator that stays up."
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    add = functools.partial(add_request, commands)
    start = add("start", "ask for a run; it begins when the one before is over")
    start.add_argument("--name", help="unset: made of date and time")
    start.add_argument(
        "--start-from",
        metavar="MODEL",
        help="begin with: latest, a run, a .keras file on the coordinator, or scratch (run.start_from)",
    )
    start.add_argument("--rounds", type=int, metavar="N", help="at most this many rounds (run.rounds)")
    start.add_argument("--min-nodes", type=int, metavar="N", help="wait for this many nodes (run.min_nodes)")
    start.add_argument("--target-accuracy", type=float, metavar="A", help="stop once this good")
    start.add_argument("--seed", type=int, help="of everything random")
    listing = add("list", "runs, the newest first")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="show so many (default: 20)")
    for name, text, unset in (
        ("show", "a run's state, settings and rounds", "the one under way, or else the newest"),
        ("stop", "end a run with the best model it has", "the one under way"),
    ):
        add(name, text).add_argument("name", nargs="?", metavar="NAME", help=f"unset: {unset}")


def run(args: argparse.Namespace) -> int:
    """0 where the coordinator did it. Raises ApiaryError."""
    settings = settings_of(args)

    def request(op: str, **options: Any) -> Any:
        return ask(settings, f"run.{op}", {k: v for k, v in options.items() if v is not None}, args.timeout)

    match args.what:
        case "start":
            reply = request("start", name=args.name, settings=_wanted(args))
        case "list":
            reply = request("list", limit=args.limit)
        case _:
            reply = request(args.what, name=args.name)
    print(json.dumps(reply) if args.json else render(args.what, reply))
    return 0


def render(what: str, reply: dict[str, Any]) -> str:
    """An answer for people."""
    match what:
        case "start":
            ahead = reply["ahead"]
            when = f"begins after {ahead} more" if ahead else "begins"
            return f"run {reply['run']} {when}; watch it with: apiary watch"
        case "stop":
            return f"run {reply['run']} {_stopped(reply)}"
        case "list":
            return _list(reply)
        case _:
            return _show(reply)


def _stopped(reply: dict[str, Any]) -> str:
    """The end of a run after a request to stop; an older coordinator does not send which model it has."""
    if reply["state"] == "withdrawn":
        return "will not begin"
    if reply.get("best") is not None:
        return f"is being finished with its best model, of round {reply['best']}"
    if reply["state"] == "stopped":
        return "has ended, without a model"
    return "comes to its end; it has no model unless a round closes yet"


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of `[run]` that this run shall have, without the section's name."""
    others = [key for key in args.overrides if not key.startswith((_PREFIX, *_OURS))]
    if others:
        raise SettingsError(
            f"--set {others[0]}: a run takes settings of [run] only; the coordinator has its own for the rest"
        )
    wanted = {key.removeprefix(_PREFIX): v for key, v in args.overrides.items() if key.startswith(_PREFIX)}
    flags = {name: getattr(args, name) for name in _FLAGS}
    return {**wanted, **{name: value for name, value in flags.items() if value is not None}}


def _list(reply: dict[str, Any]) -> str:
    now = time.time()
    rows = [
        [
            run["run"],
            run["state"],
            _clock(run["created"]) if run["state"] not in _NEVER_BEGAN else "",
            duration((run["ended"] or now) - run["created"]) if run["state"] not in _NEVER_BEGAN else "",
            str(run["rounds"]),
            share(run["accuracy"]),
            run["why"] or "",
            run["stop"] or "",
        ]
        for run in reply["runs"]
    ]
    header = ["RUN", "STATE", "BEGAN", "TOOK", "ROUNDS", "BEST", "ASKED FOR", "ENDED BECAUSE"]
    lines = [table(header, rows) if rows else "no run yet: apiary run start"]
    if reply["next"] is not None:
        lines.append(f"next by the schedule: {_clock(reply['next'])}")
    if reply["wanted_samples"] is not None:
        lines.append(f"new samples: {reply['new_samples']} of {reply['wanted_samples']} that begin a run")
    return "\n".join(lines)


def _show(reply: dict[str, Any]) -> str:
    stage = f", {reply['stage']}" if reply["stage"] else ""
    when = "queued" if reply["state"] in _NEVER_BEGAN else "began"
    lines = [f"run      {reply['run']}: {reply['state']}{stage}", f"{when:<8} {_clock(reply['created'])}"]
    if reply["ended"]:
        lines.append(f"ended    {_clock(reply['ended'])}")
    lines += [f"{name:<8} {reply[key]}" for name, key in (("asked", "why"), ("stop", "stop")) if reply[key]]
    lines.append(f"folder   {reply['folder']}")
    settings = reply["settings"]
    shown = [str(settings.get(key)) for key in ("recipe", "strategy") if key in settings]
    shown += [
        f"{key} {settings[key]}" for key in ("rounds", "min_nodes", "only", "seed") if settings.get(key)
    ]
    lines.append(f"settings {', '.join(shown)}")
    return "\n".join([*lines, "", rounds_table(reply["results"])]) if reply["results"] else "\n".join(lines)


def rounds_table(results: list[dict[str, Any]]) -> str:
    """A table of rounds; `contributors`, `rejected` and `missing` are counts."""
    rows = [
        [
            str(r["round"]),
            r["state"],
            share(r["accuracy"]),
            "" if r["loss"] is None else f"{r['loss']:.3f}",
            str(r["contributors"]),
            str(r["rejected"] or ""),
            str(r["missing"] or ""),
            f"{r['seconds']:.1f} s",
            f"{r['bytes_up'] / 1e6:.1f} MB",
            f"{r['bytes_down'] / 1e6:.1f} MB",
            r["why"] or "",
        ]
        for r in results
    ]
    figures = ["ACCURACY", "LOSS", "UPDATES", "REJECTED", "MISSING", "TOOK", "UP", "DOWN"]
    return table(["ROUND", "STATE", *figures, "WHY"], rows)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
