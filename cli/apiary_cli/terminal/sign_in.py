"""How an owner comes to a node's pages: their address, and the QR code that signs a phone in."""

import os
import secrets
import shutil
import sys
import time
from urllib.parse import urlsplit

from apiary.addresses import is_loopback, url
from apiary.errors import SettingsError
from apiary.settings import EdgeSettings, Settings
from apiary_cli.terminal.qr import columns, drawing
from apiary_cli.terminal.streams import raw
from apiary_edge.owner.status_file import find
from apiary_edge.web.sign_in_code import LIFE_S, NONCE_BYTES, Instant, make_code


def served(settings: Settings, now: float) -> str | None:
    """The address of the pages that the node on this state folder serves, None without one; `now` monotonic.

    Raises StoreError.
    """
    found = find(settings, now)
    page = found.status.get("page") if found is not None and found.alive else None
    if not isinstance(page, dict) or page.get("state_dir") != str(settings.edge.state_dir.absolute()):
        return None
    address = page.get("url")
    return address if isinstance(address, str) and address.startswith("http://") else None


def show_code(edge: EdgeSettings, address: str, token: str, *, port: int, folder: str = "") -> None:
    """Print a QR code for the page at `address`, whose port is set to `port`; `folder` is where it signs in.

    Raises SettingsError where no phone could reach the address.
    """
    parts = urlsplit(address)
    assert parts.hostname is not None and parts.port is not None  # noqa: S101 - an address that a server has
    if is_loopback(parts.hostname):
        raise SettingsError(
            f'the pages are at {address}, for this machine alone: set edge.page.host = "lan" (or start the '
            "page with --host lan) for a phone in the same network"
        )
    now = Instant(time.monotonic(), time.time())
    code = make_code(token, port, now, secrets.token_bytes(NONCE_BYTES))
    name = name_of(edge)
    link = url("http", name, parts.port, f"/{folder}#code={code}")
    picture = _picture(link)
    if picture is not None:
        out = raw(sys.stdout)
        out.write(f"{picture}\n")
        out.flush()
        print("Scan it with the phone's camera: it signs one phone in, once,", end=" ")
    else:
        print("This signs one phone in, once,", end=" ")
    print(f"within {LIFE_S / 60:.0f} minutes. The pages of {edge.node_id}:")
    print(f"  {link}")
    print(f"  {address}{folder}#code={code}   where the network does not know {name}", flush=True)


def name_of(edge: EdgeSettings) -> str:
    """The name by which a phone finds this node: the setting's first, else this machine's by mDNS."""
    return edge.page.names[0] if edge.page.names else f"{os.uname().nodename.split('.')[0]}.local"


def _picture(link: str) -> str | None:
    """The QR code as this terminal can show it; None where it cannot."""
    if not sys.stdout.isatty():
        return None
    try:
        import segno
    except ImportError:
        return None
    modules = [list(row) for row in segno.make(link, error="l", micro=False).matrix]
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    if columns(modules, unicode=unicode) > shutil.get_terminal_size().columns:
        return None
    return drawing(modules, unicode=unicode)
