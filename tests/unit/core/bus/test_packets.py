"""Bytes cut into MQTT packets: at any borders, within bounds, and what is no MQTT refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiary.bus.packets import MAX_PACKET_BYTES, Malformed, PacketReader, publish


def packet(first: int, body: bytes) -> bytes:
    """With its length as MQTT writes it."""
    length, left = bytearray(), len(body)
    while True:
        left, low = left >> 7, left & 0x7F
        length.append(low | (0x80 if left else 0))
        if not left:
            return bytes((first,)) + bytes(length) + body


def told(packets: PacketReader, data: bytes) -> list[tuple[int, bytes]]:
    return [(first, bytes(body)) for first, body in packets.feed(data)]


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 2, 127, 128, 300, 16_383, 16_384])), max_size=8
    ),
    st.lists(st.integers(1, 20_000), max_size=30),
)
def test_packets_are_the_same_wherever_the_bytes_were_cut(
    wanted: list[tuple[int, int]], cuts: list[int]
) -> None:
    sent = [(first, bytes([first]) * size) for first, size in wanted]
    stream = b"".join(packet(first, body) for first, body in sent)
    packets, got = PacketReader(), []
    for cut in cuts:
        got += told(packets, stream[:cut]) if stream[:cut] else []
        stream = stream[cut:]
    got += told(packets, stream) if stream else []
    assert got == sent


@given(st.binary(min_size=1, max_size=400))
def test_any_bytes_give_packets_or_the_one_error(data: bytes) -> None:
    packets = PacketReader()
    try:
        for i in range(len(data)):
            packets.feed(data[i : i + 1])
            assert 0 < packets.ask <= 131_072
    except Malformed:
        pass


@pytest.mark.parametrize(("size", "fits"), [(MAX_PACKET_BYTES, True), (MAX_PACKET_BYTES + 1, False)])
def test_a_packet_that_is_too_large_is_refused_before_its_bytes_come(size: int, fits: bool) -> None:
    head = packet(0x30, b"\0" * size)[:5]
    if fits:
        assert PacketReader().feed(head) == []
    else:
        with pytest.raises(Malformed, match=str(size)):
            PacketReader().feed(head)


def test_a_length_of_five_bytes_is_no_mqtt() -> None:
    with pytest.raises(Malformed, match="four bytes"):
        PacketReader().feed(b"\x30\xff\xff\xff\xff\x01")


def test_the_rest_of_a_large_packet_is_asked_for() -> None:
    packets = PacketReader()
    few = packets.ask
    packets.feed(packet(0x32, b"x" * 120_000)[:1_000])
    assert few < 120_000 - 1_000 < packets.ask <= 131_072


@pytest.mark.parametrize(
    ("packet", "qos", "v5", "expected"),
    [
        (b"\0\3a/b" + b"\0\7" + b"\0" + b"hello", 1, True, (b"a/b", 7, b"hello")),
        (b"\0\3a/b" + b"\0\7" + b"\2\1\1" + b"hello", 1, True, (b"a/b", 7, b"hello")),
        (b"\0\3a/b" + b"\0\7" + b"hello", 1, False, (b"a/b", 7, b"hello")),
        (b"\0\3a/b" + b"\0" + b"hello", 0, True, (b"a/b", 0, b"hello")),
        (b"\0\3a/b" + b"\1\0" + b"\0", 1, True, (b"a/b", 256, b"")),
        (b"\0\3a/b", 0, False, (b"a/b", 0, b"")),
        (b"\0\3a/b\0\7\0", 2, True, None),
        (b"\0\0\0\7\0hello", 1, True, None),
        (b"\0\3a/b\0\7\x80\1", 1, True, None),
        (b"\0\3a/b\0\7\5\1", 1, True, None),
        (b"\0\3a/b\0\7", 1, True, None),
        (b"\0\3a/b\0", 1, False, None),
        (b"\0\3a", 0, False, None),
        (b"\0", 0, False, None),
        (b"", 0, True, None),
    ],
)
def test_publish_is_read_or_left_to_paho(
    packet: bytes, qos: int, v5: bool, expected: tuple[bytes, int, bytes] | None
) -> None:
    assert publish(memoryview(packet), qos, v5=v5) == expected
