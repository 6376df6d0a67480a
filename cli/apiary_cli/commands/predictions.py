"""`apiary predictions`: the address of this node's predictions page, with its owner's token."""

import argparse
import json
from pathlib import Path

from apiary.addresses import url
from apiary.errors import DataError, SettingsError
from apiary.settings.page import LAN
from apiary_cli.terminal.flags import settings_of

EXAMPLES = """examples:
  apiary predictions                                     on the node; open the address that is printed
  sudo -u apiary apiary predictions --config /etc/apiary/apiary.toml

The page is served by `apiary edge` where edge.predict.enabled is true. The address holds the owner's token:
whoever has it sees the camera's pictures.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="the node's folder (edge.state_dir)")
    parser.add_argument("--json", action="store_true", help="one JSON line: address and token")


def run(args: argparse.Namespace) -> int:
    """Print it. Raises ApiaryError."""
    from apiary_edge.labelling.server import lan_address
    from apiary_edge.web.token import load

    edge = settings_of(args, edge__state_dir=args.state_dir).edge
    if not edge.predict.enabled:
        raise SettingsError(
            'this node does not predict: set edge.predict.enabled = true (and edge.page.host = "lan", for a '
            "phone in the same network), and start apiary edge again"
        )
    if not edge.serves_pages:
        raise SettingsError("this node serves no pages: edge.page.enabled is false")
    if edge.page.port == 0:
        raise SettingsError("edge.page.port is 0, any that is free: the log of apiary edge says which")
    token = load(edge.state_dir)
    if token is None:
        raise DataError(
            f"there is no token in {edge.state_dir}: no node has served its page from there; start apiary "
            "edge, or say where it keeps its state: --state-dir, --config"
        )
    host = lan_address() if edge.page.host == LAN else edge.page.host
    address = url("http", host, edge.page.port, "/predictions/")
    if args.json:
        print(json.dumps({"address": address, "token": token}))
    else:
        print(f"predictions page: {address}?token={token}")
    return 0
