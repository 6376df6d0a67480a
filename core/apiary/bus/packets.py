"""Bytes of a connection cut into MQTT packets (MQTT 5, section 2.1).

paho reads a packet's first bytes one by one and puts a payload together from parts: a third of the time of a
coordinator's loop went into that (measured, 1000 nodes). Here what one read brought is cut at once.
"""

from typing import Final

from apiary.errors import BusError

MAX_PACKET_BYTES: Final = 1 << 20
"""Twice what the largest message or chunk takes, and more; sent to a broker that speaks MQTT 5."""
_READ_BYTES: Final = 16_384
_READ_MOST: Final = 131_072
_LENGTH_BYTES: Final = 4

Packet = tuple[int, memoryview]
"""The first byte (type and flags), and what follows the length."""


class Malformed(BusError):  # noqa: N818
    """The broker sent what is no MQTT, or is too large: the link cannot go on."""


class PacketReader:
    """Holds at most one packet that has not come whole."""

    __slots__ = ("_need", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._need = 0

    @property
    def ask(self) -> int:
        """How many bytes to read next: the rest of a large packet, or a good many of small ones."""
        return min(max(_READ_BYTES, self._need - len(self._rest)), _READ_MOST)

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that are whole with these bytes. Raises Malformed."""
        held: bytes | bytearray = data
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return []
            held, self._rest = self._rest, bytearray()
        view, found, at = memoryview(held), [], 0
        while True:
            begin, end = _span(view, at)
            if end > len(view):
                break
            found.append((view[at], view[begin:end]))
            at = end
        if at < len(view):
            self._rest += view[at:]
            self._need = end - at
        return found


def _span(view: memoryview, at: int) -> tuple[int, int]:
    """Where the body of the packet at `at` begins and ends; an end past the view's where more must come."""
    length = shift = 0
    begin = at + 1
    while begin < len(view):
        byte = view[begin]
        length |= (byte & 0x7F) << shift
        begin += 1
        if byte < 0x80:
            if length > MAX_PACKET_BYTES:
                raise Malformed(f"a packet of {length} bytes, expected at most {MAX_PACKET_BYTES}")
            return begin, begin + length
        shift += 7
        if shift == 7 * _LENGTH_BYTES:
            raise Malformed("a packet's length has more than four bytes: this is no MQTT")
    return begin, len(view) + 1


def publish(body: memoryview, qos: int, *, v5: bool) -> tuple[bytes, int, bytes] | None:
    """Topic, packet id and payload of a PUBLISH (MQTT 5, section 3.3).

    None where it is not what a broker that keeps to our CONNECT sends: malformed, an alias for its topic
    (an empty name), or QoS 2.
    """
    at = 2 + (body[0] << 8 | body[1]) if len(body) >= 2 else 0
    identifier = at + 2 if qos else at
    if qos > 1 or at <= 2 or len(body) < identifier + v5:
        return None
    begin = identifier
    if v5:
        # Properties are skipped; their length is below 128 unless somebody packs in long ones.
        if body[begin] >= 0x80:
            return None
        begin += 1 + body[begin]
        if begin > len(body):
            return None
    mid = body[at] << 8 | body[at + 1] if qos else 0
    return bytes(body[2:at]), mid, bytes(body[begin:])
