"""The flags that many commands share, and the settings they give."""

from __future__ import annotations

import argparse
import math
from typing import Any

from apiary.settings import Settings, load_settings


def add_broker(parser: argparse.ArgumentParser) -> None:
    """`--host` and `--port`."""
    parser.add_argument("--host", help="the broker")
    parser.add_argument("--port", type=int, help="its port")


def seconds(text: str) -> float:
    """The value of a flag such as `--timeout`: more than nothing, and an end to it."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time to wait: expected seconds, more than 0")
    return value


def settings_of(args: argparse.Namespace, **flags: Any) -> Settings:
    """The settings under `--config`, `--set`, the broker's flags, and others: `edge__node_id=args.node_id`.

    A flag that was not given (None) changes nothing. Raises SettingsError.
    """
    return load_settings(args.config, overrides_of(args, **flags)).settings


def overrides_of(args: argparse.Namespace, **flags: Any) -> dict[str, Any]:
    """What the command line says of settings, by dotted key: `--set`, `--host`, `--port`, then `flags`."""
    given = {
        "broker.host": getattr(args, "host", None),
        "broker.port": getattr(args, "port", None),
        **{key.replace("__", "."): value for key, value in flags.items()},
    }
    return {**args.overrides, **{key: value for key, value in given.items() if value is not None}}
