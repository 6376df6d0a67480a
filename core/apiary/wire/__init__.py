"""What travels: topics, control messages, blobs, chunks and codecs. Pure: bytes in, values out."""

from typing import Final, NewType

PROTOCOL: Final = 1
"""Version of the protocol; every control message carries it as `v`."""

NodeId = NewType("NodeId", str)
RunId = NewType("RunId", str)
Digest = NewType("Digest", str)
"""Lower-case hexadecimal sha256 of a blob's bytes."""
