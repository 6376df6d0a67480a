"""The labelling page, listening; and what it shares with the node's other page."""

import contextlib
import ctypes
import fcntl
import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from apiary.addresses import Address, read_host
from apiary.errors import NotReady, SettingsError
from apiary.http.server import HttpServer
from apiary.settings import EdgeSettings
from apiary_edge.labelling.app import Labelling, site
from apiary_edge.samples.model import check_label
from apiary_edge.samples.store import SampleStore
from apiary_edge.web.gate import OwnerGate
from apiary_edge.web.portal import Overview, Portal, overview
from apiary_edge.web.site import Site

SIGN_IN: Final = "in"
"""The folder of a foreground page where a phone signs in by its code; it leads on to the page."""
_SIOCGIFADDR: Final = 0x8915


class Stores:
    """A store for each thread: SQLite's connections stay with the thread that made them."""

    def __init__(self, opening: Callable[[], SampleStore]):
        self._opening = opening
        self._own = threading.local()

    def __call__(self) -> SampleStore:
        """This thread's store."""
        store: SampleStore | None = getattr(self._own, "store", None)
        if store is None:
            store = self._own.store = self._opening()
        return store


def check_host(host: str, setting: str = "--host") -> str:
    """`host` where it is one address of this machine's own network. Raises SettingsError."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else read_host(host))
    except ValueError:
        raise SettingsError(f"{setting} {host!r}: expected an IP address, such as 192.168.1.20") from None
    if address.is_unspecified or address.is_global or address.is_multicast:
        raise SettingsError(
            f"{setting} {host}: expected one address of the local network (or 127.0.0.1): pictures are shown "
            "to their owner, not to the world"
        )
    return str(address)


def lan_address() -> str:
    """This machine's own address on the way to other networks. Raises NotReady where it has none yet."""
    for family, outside in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a UDP socket sends nothing: it looks the route up (both are documentation's addresses).
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((outside, 9))
            return str(probe.getsockname()[0])
    # A fleet without a way out has no such route.
    for _, name in socket.if_nameindex():
        address = _address_of(name)
        if address is not None and not ipaddress.ip_address(address).is_loopback:
            return address
    raise NotReady("this machine has no address in a network yet")


def _address_of(interface: str) -> str | None:
    """The IPv4 address of a network interface, None without one (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("256s", interface.encode()[:15])
        try:
            found = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, asked)
        except OSError:
            return None
    return socket.inet_ntoa(found[20:24])


def give_memory_back() -> None:
    """Have glibc return a scaled picture's pixels to the system, in this whole process.

    By default each thread has a heap of its own that keeps them: 200 MB after twenty pictures of 12 million
    pixels. Elsewhere than on glibc nothing changes.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-8, 1)  # M_ARENA_MAX
        mallopt(-3, 256 * 2**10)  # M_MMAP_THRESHOLD


def make_server(
    edge: EdgeSettings,
    token: str,
    *,
    host: str,
    port: int,
    labels: Sequence[str] = (),
    may_add: bool = True,
    modelled: Callable[[], tuple[str, ...]] = tuple,
) -> HttpServer:
    """The labelling page, listening; `.run()` serves, `.close()` ends. Raises SettingsError, StoreError."""
    for label in labels:
        check_label(label)
    stores = Stores(lambda: SampleStore.of_node(edge))
    stores().labels()  # a store that cannot be used is reported before the page is
    pages = Labelling(stores, edge.store.held_out, tuple(labels), may_add, modelled)
    names = [edge.node_id, f"{edge.node_id}.local", *edge.page.names]
    gate = OwnerGate(token, port, time.monotonic, time.sleep, names=names)
    sign_in = overview(gate, Overview(edge.node_id, "", (), dict), edge.node_id)
    app = Portal(site(pages, gate, edge.node_id), {SIGN_IN: sign_in}, {})
    return listen(app, check_host(host), port)


def listen(pages: Site | Portal, host: str, port: int, *, setting: str = "--port") -> HttpServer:
    """A page's server on an address of this machine. Raises SettingsError."""
    try:
        return HttpServer(pages, host, port, allowance=pages.allowance)
    except OSError as e:
        where = Address(host, port)
        raise NotReady(f"cannot listen on {where}: {e.strerror}; choose another {setting}") from e
