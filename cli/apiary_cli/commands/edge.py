"""`apiary edge`: one node, in the foreground; `apiary edge status`: what it is at."""

import argparse
import os
import time
from pathlib import Path
from typing import Final

from apiary.errors import SettingsError
from apiary.folder_lock import hold_folder
from apiary.notify import Notifier
from apiary.process.allocator import tune
from apiary_cli.terminal.edge_status import show
from apiary_cli.terminal.flags import add_broker, settings_of
from apiary_cli.terminal.once import first_connection
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_edge.app import build

_START_S: Final = 600.0
"""A million pictures on a slow card are compared with their index in less."""
_OWN_FOLDER: Final = "stop it, or give this one its own --state-dir (edge.state_dir)"
EXAMPLES = """examples:
  apiary edge --node-id pi-1 --data /srv/pictures
  apiary edge --data pictures --host broker.local
  apiary edge --data pictures --once            one round, then leave; fails where no broker answers
  apiary edge status                            what the node of this machine is at, without any network
  apiary edge status --json | jq .state

Pictures come from a folder, from this node's sample store (apiary samples, apiary label), or from both.
The folder holds one folder a label: pictures/cat/001.jpg, pictures/dog/002.png. docs/folders.md has the other
forms that are understood.
No picture leaves this machine.

apiary edge status reads what the running node writes to /run/apiary-edge or its state folder; it ends with 0
where the node runs, with 1 where it does not, or hangs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Take part in a federation: train on this machine's pictures, send weight updates."
    parser.add_argument("word", nargs="?", choices=["status"], help="status: what the running node is at")
    parser.add_argument("--node-id", metavar="ID", help="this node's name (default: the host name)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="pictures: docs/folders.md")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="outbox, models, caches")
    add_broker(parser)
    parser.add_argument("--once", action="store_true", help="one round, and no waiting for an absent broker")
    parser.add_argument("--json", action="store_true", help="with status: as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the node until a signal, for one round, or print the state of the one that runs."""
    settings = settings_of(
        args, edge__node_id=args.node_id, edge__data_dir=args.data, edge__state_dir=args.state_dir
    )
    if args.word == "status":
        return show(settings, as_json=args.json)
    if args.json:
        raise SettingsError("--json goes with apiary edge status")
    tune(small=True)
    notifier = Notifier.from_environment(os.environ, time.monotonic)
    notifier.extend(_START_S)
    with hold_folder(settings.edge.state_dir, "node", _OWN_FOLDER):
        bus, service, board = build(settings)
        with stop_on_signals(bus.wake) as stop:
            limits = first_connection(bus, settings.broker.connect_timeout_s, stop) if args.once else None
            service.start()
            try:
                if limits is not None:
                    service.connected(limits)
                notifier.ready(board.line())
                service.run(
                    lambda: stop() or (args.once and service.rounds_done > 0),
                    lambda: notifier.turned(board.line()),
                )
            finally:
                notifier.stopping()
                service.close()
                notifier.close()
        return stop.exit_code
