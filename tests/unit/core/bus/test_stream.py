"""The socket that paho reads and writes: many small calls become few, and nothing is lost or reordered."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from apiary.bus.stream import Stream


@pytest.fixture
def ends() -> Iterator[tuple[Stream, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    stream = Stream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


def test_nothing_to_read_and_the_end_are_told_apart(ends: tuple[Stream, socket.socket]) -> None:
    stream, theirs = ends
    with pytest.raises(BlockingIOError):
        stream.recv(1)
    theirs.sendall(b"ab")
    theirs.close()
    assert [stream.recv(9), stream.recv(9)] == [b"ab", b""]
    assert not stream.reads_ahead


def test_small_packets_leave_together_and_before_a_large_one(ends: tuple[Stream, socket.socket]) -> None:
    stream, theirs = ends
    theirs.setblocking(False)
    for _ in range(3):
        assert stream.send(b"ack") == 3
    assert stream.holds_back
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    assert stream.send(b"x" * 5_000) == 5_000
    assert not stream.holds_back
    assert theirs.recv(9_000) == b"ackackack" + b"x" * 5_000


def test_a_full_socket_holds_back_in_order_and_within_bounds(ends: tuple[Stream, socket.socket]) -> None:
    stream, theirs = ends
    sent = bytearray()
    while True:  # until the kernel takes no more
        try:
            sent += b"L" * stream.send(b"L" * 50_000)
        except BlockingIOError:
            break
    taken = 0
    while True:  # and then until nothing more is held back for it
        try:
            taken += stream.send(b"s" * 1_000)
        except BlockingIOError:
            break
        assert taken < 100_000
    got = bytearray()
    while len(got) < len(sent) + taken:
        got += theirs.recv(1 << 20)
        stream.flush()
    assert got == sent + b"s" * taken
    assert not stream.holds_back


def test_goodbye_that_was_held_back_leaves_before_the_end(ends: tuple[Stream, socket.socket]) -> None:
    stream, theirs = ends
    stream.send(b"goodbye")
    stream.close()
    assert theirs.recv(100) == b"goodbye"
    assert theirs.recv(100) == b""


def test_a_flush_after_the_other_side_has_gone_is_told(ends: tuple[Stream, socket.socket]) -> None:
    stream, theirs = ends
    theirs.close()
    stream.send(b"x")
    with pytest.raises(OSError):
        stream.flush()
