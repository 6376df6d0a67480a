"""`apiary rounds`: the rounds of a run, from its folder here, or from the coordinator."""

import argparse
import json
from pathlib import Path
from typing import Any

from apiary.errors import DataError
from apiary.settings import Settings
from apiary_cli.client.asking import ask
from apiary_cli.commands.run import rounds_table
from apiary_cli.terminal.flags import add_broker, seconds, settings_of
from apiary_coordinator.report.history_file import NAME, read_history

EXAMPLES = """examples:
  apiary rounds                          of the run under way, or else the newest: the coordinator is asked
  apiary rounds autumn
  apiary rounds runs/20261120-141500-1f2e   from a run's folder, without a broker
  apiary rounds --json | jq '.rounds[-1].accuracy'
"""
_COUNTED = ("contributors", "rejected", "missing")
_KEYS = ("round", "state", "accuracy", "loss", "bytes_up", "bytes_down", "seconds", "why", *_COUNTED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Each round of a run: accuracy, loss, updates, time, bytes."
    parser.add_argument("run", nargs="?", metavar="RUN", help="name or folder; unset: the present one")
    add_broker(parser)
    parser.add_argument("--timeout", type=seconds, metavar="S", help="wait so long for the coordinator")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print them. Raises DataError, BusError, RequestRefused."""
    settings = settings_of(args)
    history = _from_folder(settings, args.run) if args.run is not None else None
    if history is None:
        history = _from_coordinator(settings, args.run, args.timeout)
    if args.json:
        print(json.dumps(history))
    elif history["rounds"]:
        print(f"run {history['run']}\n{rounds_table(history['rounds'])}")
    else:
        print(f"run {history['run']}: no round is over yet")
    return 0


def _from_coordinator(settings: Settings, name: str | None, timeout_s: float | None) -> dict[str, Any]:
    found = ask(settings, "run.show", {"name": name} if name is not None else {}, timeout_s)
    return {"run": found["run"], "rounds": found["results"]}


def _from_folder(settings: Settings, run: str) -> dict[str, Any] | None:
    """A run whose folder is on this machine; None where there is none of that name."""
    for folder in (Path(run), settings.coordinator.runs_dir / run):
        path = folder / NAME
        if not path.is_file():
            continue
        history = read_history(folder)
        try:
            rounds = [{key: _plain(key, entry.get(key)) for key in _KEYS} for entry in history["rounds"]]
            return {"run": history["run"], "rounds": rounds}
        except (TypeError, AttributeError) as e:
            raise DataError(f"{path} cannot be read: {e}") from None
    if "/" in run:
        raise DataError(f"{run} holds no {NAME}: it is no run's folder")
    return None


def _plain(key: str, value: Any) -> Any:
    return len(value or ()) if key in _COUNTED else value
