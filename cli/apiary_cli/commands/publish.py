"""`apiary publish`: a finished run's model to Edge Impulse, or as plain files into a folder."""

import argparse
import json
import os
import sys
from typing import Any

from apiary import plugins
from apiary.errors import PublishError, SettingsError
from apiary.settings import Settings
from apiary_cli.terminal.flags import settings_of
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_coordinator.publishers._after_run import Outcome, publish
from apiary_coordinator.publishers.base import PACKAGE, Candidate
from apiary_coordinator.run.finished import find_run

EXAMPLES = """examples:
  apiary publish latest --to directory
  EI_API_KEY=ei_... apiary publish latest --to edge_impulse
  apiary publish 20261120-125636-3e53 --target runner-linux-armv7 --int8

Without --to: what publish.after_run names, otherwise directory, and edge_impulse where there is an API key.
An interrupted publishing goes on with the same command; runs/RUN/publish.json says what is done.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Publish the finished model of a run."
    parser.add_argument("run", metavar="RUN", help="a run's folder, its name under runs_dir, or `latest`")
    parser.add_argument(
        "--to", action="append", metavar="PUBLISHER", help="edge_impulse or directory; may be given twice"
    )
    parser.add_argument("--device", help="estimate memory and time for this device (raspberry-pi-4)")
    parser.add_argument("--target", help="what to build (runner-linux-aarch64)")
    parser.add_argument("--int8", action="store_true", help="the 8 bit model, smaller and faster")
    parser.add_argument("--again", action="store_true", help="even where it is done already")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")


def run(args: argparse.Namespace) -> int:
    """0, or 9 where a publisher failed. Raises ApiaryError where nothing could be begun."""
    settings = settings_of(
        args,
        publish__device=args.device,
        publish__target=args.target,
        publish__model_type="int8" if args.int8 else None,
    )
    folder = find_run(args.run, settings.coordinator.runs_dir)
    names = args.to or _usual(settings)
    with stop_on_signals() as stop:
        chosen, outcomes = publish(folder, names, settings, stop=stop, again=args.again)
    if args.json:
        print(json.dumps(_as_json(chosen, outcomes)))
    else:
        _tell(chosen, outcomes)
    failed = [o.error for o in outcomes if o.error is not None]
    if stop():
        return stop.exit_code
    if len(failed) == len(outcomes) == 1 and isinstance(failed[0], SettingsError):
        return SettingsError.exit_code
    return PublishError.exit_code if failed else 0


def _usual(settings: Settings) -> list[str]:
    if settings.publish.after_run:
        return settings.publish.after_run
    has_key = settings.publish.api_key_file is not None or bool(os.environ.get("EI_API_KEY"))
    return [name for name in plugins.names(PACKAGE) if name != "edge_impulse" or has_key]


def _tell(chosen: Candidate, outcomes: list[Outcome]) -> None:
    accuracy = ", ".join(f"{kind} {value:.1%}" for kind, value in chosen.accuracy.items())
    print(f"{chosen.run}: {chosen.kind}, accuracy on the held-out pictures: {accuracy or 'unknown'}")
    for outcome in outcomes:
        if outcome.error is not None:
            print(f"{outcome.publisher}: FAILED: {outcome.error}", file=sys.stderr)
            continue
        result = outcome.result or {}
        if profile := result.get("profile"):
            from apiary_coordinator.publishers.edge_impulse import shown

            print(f"{outcome.publisher}: {shown(profile)}")
        for path, digest in result.get("files", {}).items():
            print(f"{outcome.publisher}: {chosen.folder / path}  sha256 {digest}")


def _as_json(chosen: Candidate, outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "run": str(chosen.folder),
        "kind": chosen.kind,
        "accuracy": dict(chosen.accuracy),
        "published": {
            o.publisher: {"ok": o.error is None, "fresh": o.fresh, "result": o.result}
            | ({"error": str(o.error)} if o.error else {})
            for o in outcomes
        },
    }
