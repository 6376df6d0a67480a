"""`apiary watch`: a federation as it goes, from its retained and live messages."""

import argparse
import json
import sys

from apiary.wire import NodeId
from apiary.wire.messages import Message
from apiary.wire.topics import TopicKind
from apiary_cli.client.watching import watch
from apiary_cli.terminal.flags import add_broker, settings_of
from apiary_cli.terminal.live import LiveView
from apiary_cli.terminal.stopping import stop_on_signals
from apiary_cli.terminal.view import RunView

EXAMPLES = """examples:
  apiary watch                          a table that redraws itself; plain lines where there is no terminal
  apiary watch --host broker.local
  apiary watch --json | jq .            every message as a line: topic kind, node, message
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.description = "Watch a federation: nodes, rounds, accuracy. Publishes nothing."
    add_broker(parser)
    parser.add_argument("--json", action="store_true", help="every message as one JSON line")


def run(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C."""
    settings = settings_of(args)
    live = LiveView(RunView(alone=True), title=f"{settings.federation}   ", quiet=args.json)
    take = _print_json if args.json else live.tap
    with watch(settings) as watcher, live, stop_on_signals() as stop:
        while not stop():
            for seen in watcher.poll(0.3):
                take(*seen)
    return 0


def _print_json(kind: TopicKind, node: NodeId | None, message: Message) -> None:
    body = message.model_dump(mode="json", exclude_none=True)
    print(json.dumps({"kind": kind.name.lower(), "node": node, "message": body}), flush=True)
    sys.stdout.flush()
