"""Which of a broker's addresses is tried next: several hosts, and names that stand for several addresses."""

import hashlib
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from apiary.addresses import Address
from apiary.errors import BrokerUnreachable

T = TypeVar("T")
HINT: Final = "is the broker running? Start one with `apiary broker`, or set broker.host and broker.port"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to connect to. `address` is what the settings name, `socket_address` what it stands for."""

    address: Address
    family: int
    socket_address: tuple[object, ...]

    @property
    def numeric(self) -> str:
        """The IP address."""
        return str(self.socket_address[0])


class Route:
    """Passes over all addresses, one after another; a party begins at the one that its client id picks.

    So a fleet spreads over a cluster's members, and each party keeps to the same one. A name is looked up
    when its turn comes, in every pass anew.
    """

    def __init__(self, addresses: Sequence[Address], client_id: str):
        self._turn = int.from_bytes(hashlib.sha256(client_id.encode()).digest()[:8], "big")
        self._all = _rotated(list(addresses), self._turn)
        self._hosts: deque[Address] = deque()
        self._endpoints: deque[Endpoint] = deque()

    @property
    def left(self) -> int:
        """How many are left in this pass; a name that was not looked up yet counts as one."""
        return len(self._hosts) + len(self._endpoints)

    def begin(self) -> None:
        """Begin a pass."""
        self._hosts = deque(self._all)
        self._endpoints.clear()

    def next(self) -> Endpoint:
        """The next of this pass, the first of a new one after the last. Raises BrokerUnreachable."""
        if not self.left:
            self.begin()
        if not self._endpoints:
            self._endpoints.extend(self.look_up(self._hosts.popleft()))
        return self._endpoints.popleft()

    def look_up(self, address: Address) -> list[Endpoint]:
        """What `address` stands for: the system's preference of families, within one by the client id.

        Blocks as long as the system's resolver does. Raises BrokerUnreachable.
        """
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as e:
            raise BrokerUnreachable(f"broker {address}: the name is not known ({e}); {HINT}") from None
        by_family: dict[int, list[tuple[object, ...]]] = {}
        for family, _, _, _, socket_address in found:
            by_family.setdefault(family, []).append(socket_address)
        return [
            Endpoint(address, family, socket_address)
            # Resolvers shuffle their answers.
            for family, addresses in by_family.items()
            for socket_address in _rotated(sorted(set(addresses), key=str), self._turn)
        ]


class Single(Route):
    """The route to one endpoint: for whoever looks at each of a broker's addresses."""

    def __init__(self, endpoint: Endpoint):
        super().__init__([endpoint.address], "")
        self._endpoint = endpoint

    def look_up(self, address: Address) -> list[Endpoint]:
        """That one."""
        return [self._endpoint]


def _rotated(items: list[T], turn: int) -> list[T]:
    at = turn % len(items) if items else 0
    return items[at:] + items[:at]
