"""Dialling tries each address of a name, within one deadline."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from apiary.bus.dial import Dial
from apiary.errors import BrokerUnreachable


def dial(
    port: int,
    addresses: list[tuple[int, tuple[object, ...]]],
    monkeypatch: pytest.MonkeyPatch,
    within_s: float,
) -> socket.socket:
    answer = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    attempt = Dial("broker.test", port, None, time.monotonic() + within_s)
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


def test_refused_and_silent_addresses_leave_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch, full: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()[1]
        gone.close()
        port = server.getsockname()[1]
        ports = [closed, full, port]
        addresses: list[tuple[int, tuple[object, ...]]] = [(socket.AF_INET, ("127.0.0.1", p)) for p in ports]
        began = time.monotonic()
        sock = dial(port, addresses, monkeypatch, within_s=1.5)
        assert sock.getpeername()[1] == port
        assert 0.5 < time.monotonic() - began < 1.5
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()


def test_silence_everywhere_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, full: int) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=rf"broker broker\.test:{full}: no answer within the time"):
        dial(full, [(socket.AF_INET, ("127.0.0.1", full))], monkeypatch, within_s=0.3)
    assert time.monotonic() - began < 0.6
