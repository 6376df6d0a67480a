"""Blobs cut into chunks, and put together again: bounded, resumable, indifferent to order and repetition.

A chunk is msgpack `[digest prefix, index, crc32, bytes]`. At most 120,000 bytes of payload: above about
126,976 glibc serves paho's copies by mmap and receiving costs four times as much (measured), and
mosquitto 2.1 refuses packets over 2,000,000 bytes.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgpack

from apiary.errors import ChunkError
from apiary.wire import Digest

CHUNK_BYTES: Final = 120_000
ENVELOPE_BYTES: Final = 64
"""More than a chunk's envelope ever takes."""
_PREFIX: Final = 16

MAX_RUNS: Final = 1_000
"""Of missing chunks that one message names; the rest is asked for with the next."""

Ranges = list[tuple[int, int]]


def digest_of(data: bytes | memoryview) -> Digest:
    """The name of a blob: its sha256."""
    return Digest(hashlib.sha256(data).hexdigest())


def count(blob_bytes: int) -> int:
    """How many chunks a blob of this size has."""
    return max(1, -(-blob_bytes // CHUNK_BYTES))


def span(index: int, blob_bytes: int) -> tuple[int, int]:
    """Where chunk `index` begins and ends in its blob, in bytes."""
    start = index * CHUNK_BYTES
    return start, min(start + CHUNK_BYTES, blob_bytes)


def encode(digest: Digest, index: int, data: bytes | memoryview) -> bytes:
    """One chunk's payload."""
    packed: bytes = msgpack.packb([bytes.fromhex(digest[:_PREFIX]), index, zlib.crc32(data), data])
    return packed


def named(payload: bytes) -> tuple[str, int]:
    """Which chunk a payload says it is: the first 16 hexadecimal digits of its blob's digest, and its index.

    Raises ChunkError. `Assembly.accept` holds the rest to it.
    """
    prefix, index, _, _ = _envelope(payload, "a chunk")
    return prefix.hex(), index


class Assembly:
    """Which chunks of one blob have come. Keeps no bytes: `accept` gives where a chunk's bytes belong."""

    __slots__ = ("_have", "_left", "_unverified", "bytes", "chunks", "digest")

    def __init__(self, digest: Digest, blob_bytes: int):
        self.digest = digest
        self.bytes = blob_bytes
        self.chunks = count(blob_bytes)
        self._have = bytearray(self.chunks)
        self._left = self.chunks
        self._unverified: dict[int, int] = {}
        """Checksums that are still to be compared, by chunk."""

    @property
    def complete(self) -> bool:
        """Whether every chunk has come."""
        return self._left == 0

    @property
    def received(self) -> int:
        """How many chunks have come."""
        return self.chunks - self._left

    def accept(self, index: int, payload: bytes, *, verify: bool = True) -> tuple[int, memoryview] | None:
        """The offset and bytes of a chunk that was missing, None for one that had come before.

        Raises ChunkError for a payload that is torn, of another blob, or of the wrong size. Where its blob is
        verified whole in any case, `verify` False leaves the checksum to `damaged`.
        """
        if not 0 <= index < self.chunks:
            raise ChunkError(f"chunk {index} of blob {self.digest[:12]}, which has {self.chunks}")
        start, end = span(index, self.bytes)
        data, crc = _decode(self.digest, index, end - start, payload)
        if verify and zlib.crc32(data) != crc:
            raise ChunkError(
                f"chunk {index} of blob {self.digest[:12]} is damaged: its checksum does not hold"
            )
        if self._have[index]:
            return None
        if not verify:
            self._unverified[index] = crc
        self._have[index] = True
        self._left -= 1
        return start, data

    def damaged(self, blob: memoryview) -> list[int]:
        """Of the chunks that were not verified those whose bytes in `blob` do not give their checksum."""
        return [
            i for i, crc in self._unverified.items() if zlib.crc32(blob[slice(*span(i, self.bytes))]) != crc
        ]

    def lost(self, index: int) -> None:
        """A chunk that had come could not be kept: it is missing again."""
        self._unverified.pop(index, None)
        if self._have[index]:
            self._have[index] = False
            self._left += 1

    def forget(self) -> None:
        """Count every chunk as missing again, after the whole did not match its digest."""
        self._have = bytearray(self.chunks)
        self._left = self.chunks
        self._unverified.clear()

    def missing(self, limit: int = MAX_RUNS) -> Ranges:
        """Runs of missing chunks, at most `limit` of them."""
        return ranges((i for i, have in enumerate(self._have) if not have), limit)


def ranges(indices: Iterable[int], limit: int = MAX_RUNS) -> Ranges:
    """Ascending indices as half-open runs, at most `limit` runs."""
    runs: Ranges = []
    for i in indices:
        if runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        elif len(runs) == limit:
            break
        else:
            runs.append((i, i + 1))
    return runs


def indices(runs: Iterable[tuple[int, int]], chunks: int) -> Iterator[int]:
    """The indices that `runs` names, each once, those past the blob's end left out.

    Runs ascend; what overlaps or goes back is left out, so that a peer's list costs at most `chunks` steps.
    """
    at = 0
    for start, end in runs:
        first, last = max(at, start), min(end, chunks)
        if first < last:
            yield from range(first, last)
            at = last


def _decode(digest: Digest, index: int, size: int, payload: bytes) -> tuple[memoryview, int]:
    """A chunk's bytes, and its checksum of them. Raises ChunkError."""
    if len(payload) > size + ENVELOPE_BYTES:
        raise ChunkError(
            f"chunk {index} of blob {digest[:12]} has {len(payload)} bytes, expected about {size}"
        )
    prefix, got_index, crc, data = _envelope(payload, f"chunk {index} of blob {digest[:12]}")
    if prefix != bytes.fromhex(digest[:_PREFIX]) or got_index != index:
        raise ChunkError(f"chunk {index} of blob {digest[:12]} says that it is another")
    if len(data) != size:
        raise ChunkError(f"chunk {index} of blob {digest[:12]} holds {len(data)} bytes, expected {size}")
    return data, crc


def _envelope(payload: bytes, what: str) -> tuple[bytes, int, int, memoryview]:
    # The envelope is parsed and the data taken as a view: unpacking would copy every byte once more.
    unpacker = msgpack.Unpacker(max_buffer_size=ENVELOPE_BYTES)
    unpacker.feed(payload[:ENVELOPE_BYTES])
    try:
        if unpacker.read_array_header() != 4:
            raise ValueError("not a list of four")
        prefix, index, crc = unpacker.unpack(), unpacker.unpack(), unpacker.unpack()
        data = bin_view(payload, unpacker.tell())
        if not (isinstance(prefix, bytes) and type(index) is int and type(crc) is int):
            raise TypeError("its digest, index or checksum is of another type")
    except (ValueError, TypeError, msgpack.UnpackException) as e:
        raise ChunkError(f"{what} is not a chunk: {str(e)[:60]}") from None
    return prefix, index, crc, data


_BIN_HEADERS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}


def bin_view(payload: bytes | memoryview, at: int) -> memoryview:
    """The msgpack `bin` that begins at `at` and ends with the payload, without a copy. Raises ValueError."""
    view = memoryview(payload)
    width = _BIN_HEADERS.get(view[at]) if at < len(view) else None
    if width is None:
        raise ValueError("no binary where one is expected")
    begin = at + 1 + width
    size = int.from_bytes(view[at + 1 : begin], "big")
    if begin + size != len(view):
        raise ValueError(f"binary of {size} bytes, but {len(view) - begin} follow")
    return view[begin:]
