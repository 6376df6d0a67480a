"""MQTT packets on a link: where they begin, and the answers that a broker without them would give. Pure.

Source: MQTT 5.0 (OASIS), sections 2.1, 3.2, 3.3 and 3.4; 3.1.1 has the same where it matters here.
"""

from dataclasses import dataclass
from typing import Final

_FIRST: Final = (0x10, 0x20)
"""CONNECT, and the CONNACK that answers it."""
_CONNECT: Final = 1
_PUBLISH: Final = 3
_V5: Final = 5
_NOT_AUTHORIZED: Final = {5: 0x87, 4: 0x05}
"""By the version of the protocol."""


class PacketStream:
    """Bytes of one direction in, whole packets out; what does not begin like MQTT is handed on."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._foreign: bool | None = None

    @property
    def held(self) -> int:
        """Bytes of a packet whose end has not come."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are whole with these bytes."""
        if self._foreign is None and data:
            self._foreign = data[0] not in _FIRST
        if self._foreign:
            return [data]
        self._held += data
        found = []
        while (size := _size_of(self._held)) is not None and size <= len(self._held):
            found.append(bytes(self._held[:size]))
            del self._held[:size]
        return found


@dataclass(frozen=True, slots=True)
class Published:
    """A PUBLISH: its topic, and the PUBACK that acknowledges it; none for QoS 0."""

    topic: str
    ack: bytes


def published(packet: bytes) -> Published | None:
    """What a packet publishes, None where it is of another kind."""
    if packet[0] >> 4 != _PUBLISH or len(packet) < 5:
        return None
    at = _header_size(packet)
    length = int.from_bytes(packet[at : at + 2])
    end = at + 2 + length
    topic = packet[at + 2 : end].decode(errors="replace")
    if not packet[0] >> 1 & 3:
        return Published(topic, b"")
    return Published(topic, bytes((0x40, 2)) + packet[end : end + 2])


def refusal(packet: bytes) -> bytes | None:
    """The CONNACK that refuses this CONNECT for its credentials; None where it is no CONNECT."""
    if packet[0] >> 4 != _CONNECT:
        return None
    at = _header_size(packet)
    version = packet[at + 2 + int.from_bytes(packet[at : at + 2])]
    code = _NOT_AUTHORIZED.get(version, 0x05)
    return bytes((0x20, 3, 0, code, 0)) if version == _V5 else bytes((0x20, 2, 0, code))


def _header_size(packet: bytes | bytearray) -> int:
    """The first byte, and one to four with the length of the rest."""
    return 2 + next(i for i in range(4) if not packet[1 + i] & 0x80)


def _size_of(data: bytearray) -> int | None:
    """The whole packet that begins here; None while its length has not come."""
    size = 0
    for i in range(4):
        if len(data) < 2 + i:
            return None
        size |= (data[1 + i] & 0x7F) << 7 * i
        if not data[1 + i] & 0x80:
            return 2 + i + size
    return len(data)
