"""Dialling one endpoint, within its deadline."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from apiary.addresses import Address
from apiary.bus.dial import Dial
from apiary.bus.route import Endpoint
from apiary.errors import BrokerUnreachable


def dial(address: str, port: int, within_s: float) -> socket.socket:
    endpoint = Endpoint(Address("broker.test", port), socket.AF_INET, (address, port))
    attempt = Dial(endpoint, None, time.monotonic() + within_s)
    while (sock := attempt.step(time.monotonic())) is None:
        time.sleep(0.005)
    return sock


@pytest.fixture
def full() -> Iterator[int]:
    """A port whose queue of connections is full: it stays silent, as a filtered one does."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    port = int(server.getsockname()[1])
    fillers = [socket.socket() for _ in range(4)]
    for s in fillers:
        s.setblocking(False)
        s.connect_ex(("127.0.0.1", port))
    yield port
    for s in (server, *fillers):
        s.close()


def test_a_socket_that_waits_for_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = dial("127.0.0.1", server.getsockname()[1], within_s=5)
        assert sock.getpeername() == server.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()


def test_silence_ends_at_the_deadline(full: int) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=rf"broker broker\.test:{full}: no answer within the time"):
        dial("127.0.0.1", full, within_s=0.3)
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("own", ["127.0.1.1", "127.0.0.2"])
def test_a_refusal_elsewhere_names_the_broker_that_listens_on_loopback_only(own: str) -> None:
    """127.0.1.1 is what Debian's /etc/hosts gives for the machine's own name."""
    with socket.create_server(("127.0.0.1", 0)) as broker:
        port = broker.getsockname()[1]
        with pytest.raises(BrokerUnreachable, match=r"listen on that address\?.*127\.0\.0\.1 alone"):
            dial(own, port, within_s=5)
    with pytest.raises(BrokerUnreachable, match="is the broker running"):
        dial("127.0.0.1", port, within_s=5)
