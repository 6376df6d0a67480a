"""`apiary label`: the labelling page of this node: where the running one serves it, or in the foreground."""

import argparse
import contextlib
import signal
import time
from pathlib import Path
from typing import Final

from apiary.errors import DataError, SettingsError
from apiary.settings import EdgeSettings, Settings, load_settings
from apiary.settings.page import LAN
from apiary.text_files import read_text
from apiary_cli.terminal import sign_in

_PORT: Final = 4911
_OWN: Final = ("host", "port", "labels", "labels_file")
"""Flags of a page in the foreground."""

EXAMPLES = """examples:
  apiary label                                 on this machine: open the address that is printed
  apiary label --qr                            for a phone in the same network: scan the code
  apiary label --host 192.168.1.20             the same without a code
  apiary label --labels helmet,head            these labels and no others

Where the node runs and serves its pages (edge.page), their address is printed; otherwise a page is served
until Ctrl-C. The address holds the owner's token: whoever has it sees the pictures. The QR code signs one
phone in, once, within ten minutes. Pictures stay on this machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="the node's folder (edge.state_dir)")
    parser.add_argument("--qr", action="store_true", help="print a QR code that signs a phone in")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help="address to listen on (127.0.0.1; with --qr this machine's own)",
    )
    parser.add_argument("--port", type=int, help=f"port to listen on ({_PORT})")
    parser.add_argument("--labels", metavar="A,B", help="the labels to choose from")
    parser.add_argument("--labels-file", type=Path, metavar="FILE", help="the same, one a line")
    parser.add_argument(
        "--new-labels", action="store_true", help="with --labels or --labels-file: others may be added"
    )


def run(args: argparse.Namespace) -> int:
    """Say where the running node serves it, or serve until interrupted. Raises ApiaryError."""
    # Not `settings_of`: --host and --port are those of the page.
    overrides = {**args.overrides, **({"edge.state_dir": args.state_dir} if args.state_dir else {})}
    settings = load_settings(args.config, overrides).settings
    found = sign_in.served(settings, time.monotonic())
    if found is None:
        return _serve(args, settings.edge)
    if given := [f"--{name.replace('_', '-')}" for name in _OWN if getattr(args, name) is not None]:
        raise SettingsError(
            f"the running node serves the labelling page of {settings.edge.state_dir} at {found}label/: "
            f"leave {' and '.join(given)} out, or stop the node"
        )
    _show(args, settings, found)
    return 0


def _show(args: argparse.Namespace, settings: Settings, address: str) -> None:
    from apiary_edge.web.token import load_or_make

    token = load_or_make(settings.edge.state_dir)
    if args.qr:
        sign_in.show_code(settings.edge, address, token, port=settings.edge.page.port)
    else:
        print(f"labelling page of the running node: {address}label/?token={token}", flush=True)


def _serve(args: argparse.Namespace, edge: EdgeSettings) -> int:
    from apiary_edge.labelling.server import SIGN_IN, give_memory_back, lan_address, make_server
    from apiary_edge.predicting.model_files import known_labels
    from apiary_edge.web.token import load_or_make

    port = _PORT if args.port is None else args.port
    if not 0 <= port <= 65535:
        raise SettingsError(f"--port {port}: expected 0 to 65535 (0 takes a free one)")
    host = args.host or (LAN if args.qr else "127.0.0.1")
    labels = _labels(args)
    give_memory_back()
    token = load_or_make(edge.state_dir)
    server = make_server(
        edge,
        token,
        host=lan_address() if host == LAN else host,
        port=port,
        labels=labels,
        may_add=not labels or args.new_labels,
        # Looked up each time: the node may hear of the federation's labels while the page is open.
        modelled=lambda: known_labels(edge.state_dir),
    )
    if args.qr:
        sign_in.show_code(edge, f"http://{server.address}/", token, port=port, folder=f"{SIGN_IN}/")
    else:
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
