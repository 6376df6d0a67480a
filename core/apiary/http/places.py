"""Who is hung up on where the places of a server are taken. Pure."""

import ipaddress
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one server; every time is a total, which no trickle of bytes extends.

    `head_s` is for TLS, head and the body of a sender who is not known; `body_s` for the body of one who is;
    `answer_s` for taking the answer. `max_held_bytes` are the known senders' bodies in memory at once,
    `workers` the threads that the application runs in.
    """

    max_connections: int = 64
    max_of_address: int = 16
    """A browser opens six at once to one server."""
    head_s: float = 10.0
    body_s: float = 120.0
    answer_s: float = 30.0
    max_head_bytes: int = 16 * 2**10
    max_held_bytes: int = 32 * 2**20
    workers: int = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A connection: its number grows with time. `waits`: for its sender, who has not shown who it is.

    `began`: its ClientHello came whole, and it takes some turns of both sides until its request does.
    """

    number: int
    address: str
    waits: bool
    began: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """Whether one more connection is taken, and which one is hung up on for it."""

    free: bool
    hang_up: int | None = None


def room_for(address: str, taken: Collection[Place], limits: HttpLimits) -> Room:
    """The decision on a new connection of `address`.

    Whoever sends its request at once needs its place for milliseconds, so the oldest that still waits
    gives way: of the same address where that has its share, else of the address that holds the most. A
    handshake takes longer; so one that has begun gives way after those that have not.
    """
    held = Counter(place.address for place in taken)
    if held[address] >= limits.max_of_address:
        return _instead_of([p for p in taken if p.address == address])
    if len(taken) < limits.max_connections:
        return Room(free=True)
    waiting = [p for p in taken if p.waits]
    most = max((held[p.address] for p in waiting), default=0)
    return _instead_of([p for p in waiting if held[p.address] == most])


def _instead_of(candidates: Collection[Place]) -> Room:
    first = min(((p.began, p.number) for p in candidates if p.waits), default=None)
    return Room(free=first is not None, hang_up=first[1] if first is not None else None)


def party_of(host: str) -> str:
    """The address that connections are counted by: of IPv6 the network of 64 bits, which one machine owns.

    Example: `2001:db8::7` gives `2001:db8::/64`, `::ffff:10.0.0.7` gives `10.0.0.7`.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
