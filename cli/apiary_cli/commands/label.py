"""`apiary label`: the labelling page of this node, in the foreground."""

import argparse
import contextlib
import signal
from pathlib import Path

from apiary.errors import DataError, SettingsError
from apiary.settings import load_settings
from apiary.text_files import read_text

EXAMPLES = """examples:
  apiary label                                 on this machine: open the address that is printed
  apiary label --host 192.168.1.20             for a phone in the same network
  apiary label --labels helmet,head            these labels and no others

The address holds the owner's token: whoever has it sees the pictures. Pictures stay on this machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="the node's folder (edge.state_dir)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=4911, help="port to listen on (4911)")
    parser.add_argument("--labels", metavar="A,B", help="the labels to choose from")
    parser.add_argument("--labels-file", type=Path, metavar="FILE", help="the same, one a line")
    parser.add_argument(
        "--new-labels", action="store_true", help="with --labels or --labels-file: others may be added"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Raises ApiaryError."""
    from apiary_edge.labelling.server import give_memory_back, make_server
    from apiary_edge.predicting.model_files import known_labels
    from apiary_edge.web.token import load_or_make

    # Not `settings_of`: --host and --port are those of the page.
    overrides = {**args.overrides, **({"edge.state_dir": args.state_dir} if args.state_dir else {})}
    edge = load_settings(args.config, overrides).settings.edge
    if not 0 <= args.port <= 65535:
        raise SettingsError(f"--port {args.port}: expected 0 to 65535 (0 takes a free one)")
    labels = _labels(args)
    give_memory_back()
    token = load_or_make(edge.state_dir)
    server = make_server(
        edge,
        token,
        host=args.host,
        port=args.port,
        labels=labels,
        may_add=not labels or args.new_labels,
        # Looked up each time: the node may hear of the federation's labels while the page is open.
        modelled=lambda: known_labels(edge.state_dir),
    )
    print(f"labelling page: http://{server.address}/?token={token}", flush=True)
    signal.signal(signal.SIGTERM, _stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
    finally:
        server.close()
    return 0


def _stop(*_: object) -> None:
    # Not by way of SIGINT, which a shell has programs in its background ignore.
    raise KeyboardInterrupt


def _labels(args: argparse.Namespace) -> list[str]:
    texts = args.labels.split(",") if args.labels else []
    if args.labels_file is not None:
        texts += read_text(args.labels_file, what="labels file", error=DataError).splitlines()
    return list(dict.fromkeys(t.strip() for t in texts if t.strip()))
