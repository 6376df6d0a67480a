"""`apiary config`: the settings as they are, where each came from, and a file to start from."""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from apiary.errors import SettingsError
from apiary.options import bounds
from apiary.settings import Loaded, Settings, flatten, load_settings, to_toml
from apiary_cli.terminal.table import table
from apiary_coordinator.run.checks import check_settings

_COLUMN = 34  # where the explanations begin, where the setting is short enough
EXAMPLES = """examples:
  apiary config                             every setting and where it came from
  apiary config --changed                   only those that are not defaults
  apiary config --defaults > apiary.toml    a file to start from, with every setting explained
  APIARY_RUN__ROUNDS=12 apiary config --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = (
        "Show the effective settings. Command line before environment (APIARY_*) before file "
        "(--config, APIARY_CONFIG or ./apiary.toml) before defaults."
    )
    parser.add_argument("--changed", action="store_true", help="only what differs from the defaults")
    parser.add_argument("--defaults", action="store_true", help="print a commented TOML of all settings")
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def run(args: argparse.Namespace) -> int:
    """Print the settings. Raises SettingsError."""
    if args.defaults:
        print(defaults_toml(), end="")
        return 0
    loaded = load_settings(args.config, args.overrides)
    try:
        check_settings(loaded.settings)
    except SettingsError as e:
        named = re.match(r"[\w.]*", str(e))
        where = _origin(named[0] if named else "", loaded)
        raise SettingsError(str(e) if where == "default" else f"{where}: {e}") from None
    rows = effective(loaded)
    if args.changed:
        rows = {key: row for key, row in rows.items() if row["origin"] != "default"}
    if args.json:
        print(json.dumps(rows))
    elif not rows:
        print("every setting has its default")
    elif sys.stdout.isatty():
        cells = [[key, _shown(row["value"]), row["origin"]] for key, row in rows.items()]
        print(table(["setting", "value", "from"], cells, fold=True))
    else:
        for key, row in rows.items():
            print(f"{key} = {_shown(row['value'])}  # {row['origin']}")
    return 0


def effective(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Dotted key to its value, secrets hidden, and its origin."""
    return {
        key: {"value": value, "origin": _origin(key, loaded)}
        for key, value in flatten(loaded.settings).items()
    }


def defaults_toml() -> str:
    """Every setting as TOML, commented out at its default, with what it means."""
    lines = [
        "# Apiary's settings. A line like '#rounds = 10' shows a default: take away its # to change it.",
        "# Settings without a default are named in words. The environment overrides this file, the command",
        "# line both: APIARY_RUN__ROUNDS=12 is rounds in [run].",
        "",
    ]
    return "\n".join([*lines, *_entries(Settings)]) + "\n"


def _entries(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The model's own settings, then its sections; `path` is that of the model, such as `edge.`."""
    sections = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            about = info.description or (kind.__doc__ or "").strip().split("\n")[0]
            sections.append((f"{path}{name}", about, kind))
        else:
            yield _entry(name, info)
    for section, about, kind in sections:
        yield ""
        if about:
            yield f"# {about}"
        yield f"[{section}]"
        yield from _entries(kind, f"{section}.")


def _entry(name: str, info: FieldInfo) -> str:
    fixed = info.default_factory is None or info.default_factory is dict
    default = info.get_default(call_default_factory=True, validated_data={}) if fixed else None
    about = (info.description or "").removeprefix("unset: " if default is None else "")
    limits = bounds(info)
    about += f" ({limits})" if limits else ""
    if default is None:
        return f"# {name} (unset): {about}"
    return f"#{name} = {toml_value(default)}".ljust(_COLUMN) + f"  # {about}"


def toml_value(value: Any) -> str:
    """A default as TOML, on one line. Raises TypeError for what our settings never hold."""
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return to_toml({"value": value}).removeprefix("value = ").rstrip() if value != {} else "{}"


def _origin(key: str, loaded: Loaded) -> str:
    parts = key.split(".")
    for i in range(len(parts), 0, -1):
        if (found := loaded.origin.get(".".join(parts[:i]))) is not None:
            return found
    return "default"


def _shown(value: Any) -> str:
    return "(unset)" if value is None else json.dumps(value, ensure_ascii=False, default=str)
