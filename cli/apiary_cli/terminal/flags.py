"""The flags that many commands share: the settings and files they name, and what `--json` prints."""

import argparse
import json
from pathlib import Path
from typing import Any

from apiary.addresses import read_host, read_https, url
from apiary.errors import DataError, SettingsError, TopicError
from apiary.settings import Settings, load_settings
from apiary.wire.topics import check_name


def add_broker(parser: argparse.ArgumentParser) -> None:
    """`--host` and `--port`."""
    parser.add_argument("--host", help="the broker")
    parser.add_argument("--port", type=int, help="its port")


def add_request(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A command below another one that sends a request to the coordinator, with its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    add_broker(parser)
    parser.add_argument("--timeout", type=seconds, metavar="S", help="wait so long for the coordinator")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def seconds(text: str) -> float:
    """A `--timeout`: more than 0, at most a day. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, more than 0 and at most 86400")
    return value


def name(value: str, what: str) -> str:
    """`value` where it may stand in a topic. Raises SettingsError: it was typed, and not received."""
    try:
        return check_name(value, what)
    except TopicError as e:
        raise SettingsError(str(e)) from None


def host(value: str, what: str) -> str:
    """A host's name or address, without brackets. Raises SettingsError."""
    try:
        return read_host(value)
    except ValueError as e:
        raise SettingsError(f"{what} {e}") from None


def https_url(value: str, what: str) -> str:
    """`https://HOST:PORT` of a service. Raises SettingsError."""
    try:
        where = read_https(value)
    except ValueError as e:
        raise SettingsError(f"{what} {e}") from None
    return url("https", where.host, where.port)


def read(path: Path) -> bytes:
    """The bytes of a file that the user named. Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}") from None


def print_result(args: argparse.Namespace, result: dict[str, Any], *lines: str) -> None:
    """`result` as one JSON line with `--json`, otherwise `lines`."""
    for line in [json.dumps(result)] if args.json else lines:
        print(line)


def settings_of(args: argparse.Namespace, **flags: Any) -> Settings:
    """The settings under `--config`, `--set`, the broker's flags, and others: `edge__node_id=args.node_id`.

    A flag that was not given (None) changes nothing. Raises SettingsError.
    """
    return load_settings(args.config, overrides_of(args, **flags)).settings


def overrides_of(args: argparse.Namespace, **flags: Any) -> dict[str, Any]:
    """The settings on the command line, by dotted key: `--set`, `--host`, `--port`, then `flags`."""
    given = {
        "broker.host": getattr(args, "host", None),
        # The flag names the broker, whatever cluster the settings name.
        "broker.hosts": [] if getattr(args, "host", None) is not None else None,
        "broker.port": getattr(args, "port", None),
        **{key.replace("__", "."): value for key, value in flags.items()},
    }
    return {**args.overrides, **{key: value for key, value in given.items() if value is not None}}
