"""The `apiary` command: finds the sub-command's module, loads only that one, turns errors into exit codes."""

import argparse
import contextlib
import errno
import importlib
import json
import logging
import sys
import tomllib
from pathlib import Path
from typing import Any, Final, Protocol, cast

from apiary import __version__
from apiary.errors import ApiaryError, SettingsError, StoreError
from apiary_cli.terminal import logs
from apiary_cli.terminal.stopping import Interrupted
from apiary_cli.terminal.streams import OutputLost, give_up_output, printable_output

COMMANDS: Final = {
    "demo": "a whole federation on this machine: broker, coordinator, nodes, result",
    "simulate": "a fleet of up to thousands of virtual nodes in one process, on a virtual clock",
    "study": "a grid of simulated runs over settings, shares and seeds: one table, one page",
    "broker": "run the MQTT broker",
    "broker-log": "filter mosquitto's log: who was denied what, without a line for every packet",
    "coordinator": "run the coordinator: rounds, aggregation, evaluation, result",
    "edge": "run an edge node: train on this machine's pictures",
    "watch": "watch a federation as it goes",
    "status": "what a federation is at, in one look",
    "run": "begin, stop, list and show the runs of a coordinator that stays up",
    "nodes": "every node in a table: state, samples, tags, model, release, temperature",
    "rounds": "the rounds of a run: accuracy, loss, updates, time",
    "node": "have nodes pause, resume, drain, retrain, or send their log",
    "samples": "this node's pictures: import, list, label, delete, count",
    "label": "the labelling page of this node, for a phone or a desktop",
    "predictions": "the address of this node's live predictions page",
    "capture": "keep frames of this node's camera for labelling",
    "predict": "classify pictures with a run's model",
    "publish": "a run's model to Edge Impulse (.eim), or as plain files into a folder",
    "release": "roll a model out to the fleet in waves; pause, roll back, pin",
    "data": "data sets: list, fetch, partition among nodes",
    "doctor": "check this machine and the broker, and say how to mend what is wrong",
    "chaos": "disturb a real federation on this machine, and check that nothing was lost or counted twice",
    "pki": "who belongs to the fleet: certificates for TLS and for signed messages",
    "image": "write a card so that a Pi joins the fleet by itself",
    "config": "show the effective settings and where each came from",
}

_EPILOG: Final = """examples:
  apiary demo                                      a federation of five nodes on this machine
  apiary broker                                    a terminal each: the broker,
  apiary coordinator --test-data held-out          the coordinator,
  apiary edge --node-id pi-1 --data pictures       and a node

exit codes: 0 done, 1 checks failed, 2 settings, 3 data, 4 broker, 5 protocol, 6 model, 7 run failed,
            8 storage, 9 publishing, 10 refused, 11 not now, 130 interrupted (Ctrl-C), 143 ended (SIGTERM)
"""


class Command(Protocol):
    """A module of `apiary_cli.commands`: one sub-command."""

    EXAMPLES: str
    """Shown below its flags."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit code."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line; the exit code."""
    with printable_output():
        try:
            try:
                return _run(sys.argv[1:] if argv is None else argv)
            finally:  # also where argparse ends the program: at exit it is too late to report
                sys.stdout.flush()
        except OutputLost as e:
            give_up_output()
            if e.errno == errno.EPIPE:  # whoever read it has seen enough
                return 0
            _complain(f"the output cannot be written: {e.strerror}")
            return StoreError.exit_code


def _run(argv: list[str]) -> int:
    form = "text"
    try:
        command, args = _parse(argv)
        form = args.log_format
        logs.to_stderr(verbose=args.verbose, form=form)
        return command.run(args)
    except ApiaryError as e:
        if form == "json":
            logging.getLogger("apiary_cli").error("%s", e)
        else:
            _complain(str(e))
        return e.exit_code
    except Interrupted as e:
        _complain("interrupted")
        return e.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except OutputLost:
        raise
    except OSError as e:
        if e.filename is None or e.strerror is None:
            raise
        from apiary.files import advice  # brings hashlib, which is 5 MB: not every command holds it

        # Which file the system refused is what its user needs; a traceback would not mend it.
        _complain(f"{e.filename}: {e.strerror}{advice(e)}")
        return StoreError.exit_code


def _complain(text: str) -> None:
    """One line; where standard error is a file on the disk that is full, the exit code has to do."""
    with contextlib.suppress(OSError):
        print(f"apiary: {text}", file=sys.stderr, flush=True)


def _parse(argv: list[str]) -> tuple[Command, argparse.Namespace]:
    chosen = next((word for word in argv if word in COMMANDS), None)
    parser = argparse.ArgumentParser(
        prog="apiary",
        description="Federated learning for fleets of Raspberry Pis over MQTT.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"apiary {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    module: Command | None = None
    for name, text in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            # Only the chosen one is imported: a node's memory should not hold the others.
            module = cast("Command", importlib.import_module(f"apiary_cli.commands.{name.replace('-', '_')}"))
            sub.epilog = module.EXAMPLES
            _common(sub)
            module.add_arguments(sub)
            _common_below(sub)
    args, left = parser.parse_known_args(argv)
    if left and not _takes(args, left):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    args.overrides = _overrides(args.set)
    assert module is not None  # noqa: S101 - argparse has refused anything else
    return module, args


def _takes(args: argparse.Namespace, words: list[str]) -> bool:
    """Whether these go to the command's list of files: argparse ends one at the first option behind it."""
    name = getattr(args, "files_in", None)
    if name is None or any(word.startswith("-") for word in words):
        return False
    getattr(args, name).extend(map(Path, words))
    return True


def _common(parser: argparse.ArgumentParser, *, below: bool = False) -> None:
    """The flags that every command takes; `below` another one, those not given change nothing."""

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if below else value

    group = parser.add_argument_group("settings")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=default(None),
        help="settings file (default: apiary.toml, if there)",
    )
    group.add_argument(
        "--set",
        action="append",
        default=default([]),
        metavar="KEY=VALUE",
        help="override a setting, e.g. run.rounds=12",
    )
    group.add_argument("-v", "--verbose", action="store_true", default=default(False), help="log more")
    group.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default=default("text"),
        help="json: one object a line (default: text)",
    )


def _common_below(parser: argparse.ArgumentParser) -> None:
    """The same flags after a command below, where one writes them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in set(action.choices.values()):
                if "--config" not in sub._option_string_actions:
                    _common(sub, below=True)


def _overrides(pairs: list[str]) -> dict[str, Any]:
    if not pairs:
        return {}
    from apiary.settings.loading import takes_text  # `--help` need not wait for the settings

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {pair!r}: expected KEY=VALUE, such as run.rounds=12")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = _json_or_text(text)
        values[key] = value if isinstance(value, str) or not takes_text(key) else text
    return values


def _json_or_text(text: str) -> Any:
    """A table or a list in JSON's form, `{"size": 160}`, as the environment takes it; all else is text."""
    if text.startswith(("{", "[")):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text
