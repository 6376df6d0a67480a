"""MQTT packets as the links of a disturbed federation see them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiary_cli.chaos.packets import PacketStream, Published, published, refusal

CONNECT_5 = bytes.fromhex("101000044d5154540502003c00000361626300")[:18]
CONNECT_4 = bytes.fromhex("100c00044d515454040200050000")


def publish(topic: bytes, body: bytes, *, qos: int, mid: bytes = b"\x12\x34") -> bytes:
    rest = len(topic).to_bytes(2) + topic + (mid if qos else b"") + body
    length, size = bytearray(), len(rest)
    while True:
        size, low = size >> 7, size & 0x7F
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes((0x30 | qos << 1,)) + bytes(length) + rest


PACKETS = [
    CONNECT_4,
    publish(b"a/b", b"x" * 200_000, qos=1),
    b"\xc0\x00",
    publish(b"a", b"", qos=0),
    publish(b"t" * 300, b"y" * 20_000, qos=1),
]


@given(st.lists(st.integers(1, 60_000), max_size=30))
def test_packets_are_whole_however_the_bytes_come(cuts: list[int]) -> None:
    stream, found, packets = b"".join(PACKETS), [], PacketStream()
    for cut in cuts:
        found += packets.feed(stream[:cut])
        stream = stream[cut:]
    assert [*found, *packets.feed(stream)] == PACKETS
    assert packets.held == 0


def test_what_is_no_mqtt_is_handed_on() -> None:
    foreign = PacketStream()
    assert foreign.feed(b"hello") == [b"hello"] and foreign.feed(b"\x10\x05x") == [b"\x10\x05x"]


def test_a_publish_is_acknowledged_under_its_own_number() -> None:
    assert published(publish(b"a/b", b"hello", qos=1)) == Published("a/b", b"\x40\x02\x12\x34")
    assert published(publish(b"a/b", b"z" * 300, qos=0)) == Published("a/b", b"")
    assert published(b"\xc0\x00") is None


@pytest.mark.parametrize(
    ("packet", "answer"),
    [(CONNECT_5, b"\x20\x03\x00\x87\x00"), (CONNECT_4, b"\x20\x02\x00\x05"), (b"\xc0\x00", None)],
)
def test_a_connect_is_refused_in_its_own_version(packet: bytes, answer: bytes | None) -> None:
    assert refusal(packet) == answer
