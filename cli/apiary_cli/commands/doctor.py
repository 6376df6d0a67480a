"""`apiary doctor`: what is wrong on this machine, and how to mend it."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from apiary.errors import SettingsError
from apiary.settings import Settings, load_settings
from apiary_cli.checks import broker, machine, pictures
from apiary_cli.checks.certificates import certificates
from apiary_cli.checks.machine import Check
from apiary_cli.terminal.flags import add_broker, overrides_of, print_result

EXAMPLES = """examples:
  apiary doctor                       everything, before a first run
  apiary doctor --role edge --host broker.local       on a node
  apiary doctor --role edge --data photos             what of a folder would be trained
  apiary doctor --json | jq '.checks[] | select(.state != "ok")'

exit code: 0 where nothing failed (warnings are allowed), 1 otherwise
"""
_SIGNS: Final = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Check this machine for Apiary: each finding, and how to mend it."
    parser.add_argument("--role", choices=("edge", "coordinator", "all"), default="all", help="default: all")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a node's pictures (edge.data_dir)")
    parser.add_argument("--test-data", type=Path, metavar="DIR", help="the server's (coordinator.test_data)")
    add_broker(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def run(args: argparse.Namespace) -> int:
    """0 where no check failed, 1 otherwise."""
    show = _rich if sys.stdout.isatty() else _plain
    found = []
    for check in examine(args):
        found.append(check)
        if not args.json:
            show(check)
    failed = sum(c.state == "fail" for c in found)
    warned = sum(c.state == "warn" for c in found)
    counts = f"{len(found)} checks: {failed} failed, {warned} to look at"
    result = {"ok": not failed, "checks": [asdict(c) for c in found]}
    print_result(args, result, counts if failed + warned else "all is well")
    return 1 if failed else 0


def examine(args: argparse.Namespace) -> Iterator[Check]:
    """The checks of `args.role`, one by one as they are made. With broken settings, of the defaults."""
    try:
        loaded = load_settings(
            args.config,
            overrides_of(args, edge__data_dir=args.data, coordinator__test_data=args.test_data),
        )
    except SettingsError as e:
        settings = Settings()
        yield Check("settings", "fail", str(e), "correct it; the other checks use the defaults")
    else:
        settings = loaded.settings
        places = sorted(set(loaded.origin.values()))
        yield Check("settings", "ok", f"from {', '.join(places)}" if places else "defaults only")
    edge, coordinator = args.role != "coordinator", args.role != "edge"
    yield machine.python()
    yield machine.runtime(settings.edge.runtime if edge else "auto")
    if coordinator:
        yield machine.export()
    yield from certificates(settings, settings.edge.node_id if args.role == "edge" else None)
    yield from broker.broker(settings, coordinator=args.role == "coordinator")
    folders = [settings.edge.state_dir] * edge + [settings.coordinator.state_dir] * coordinator
    if len({machine.nearest(f).stat().st_dev for f in folders}) == 1:
        folders = folders[:1]  # one disk is measured once
    for folder in folders:
        yield from machine.disk(folder)
    yield machine.memory("edge" if args.role == "edge" else "coordinator")
    if edge:
        yield from machine.heat()
    yield machine.clock()
    only = args.role != "all"
    if edge:
        yield from pictures.of_node(settings.edge, needed=only or args.data is not None)
    if coordinator:
        own = settings.coordinator
        yield pictures.folder_of(
            "test pictures",
            "coordinator.test_data",
            own.test_data,
            needed=only,
            use="test",
            join_labels=own.join_labels,
        )


def _plain(check: Check) -> None:
    print(f"{check.state:4s}  {check.name:13s}  {check.what}", flush=True)
    if check.mend and check.state != "ok":
        print(f"{'':4s}  {'':13s}  -> {check.mend}", flush=True)


def _rich(check: Check) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(f" {_SIGNS[check.state]} [bold]{check.name:13s}[/] {escape(check.what)}", soft_wrap=True)
    if check.mend and check.state != "ok":
        console.print(Padding(f"[cyan]→ {escape(check.mend)}[/]", (0, 0, 0, 17)))
