"""The server's held-out pictures by beginnings of their digests, so that a node can count which it has.

A blob of sorted, unique entries, `PREFIX_BYTES` of each file's sha256, one after the other. Among 100,000
held-out and 20,000 pictures of a node two different files agree by chance in 1 of 10**10 cases. Pure.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

PREFIX_BYTES: Final = 8
MAX_ENTRIES: Final = 100_000
"""800 KB; of a larger set the entries that come first are compared, a share of the digests at random."""


def encode(digests: Iterable[str]) -> bytes:
    """The blob of these sha256 digests (hex); empty for none."""
    return b"".join(sorted({bytes.fromhex(digest)[:PREFIX_BYTES] for digest in digests})[:MAX_ENTRIES])


def fits(size: int) -> bool:
    """Whether a blob of this many bytes may be one."""
    return 0 < size <= MAX_ENTRIES * PREFIX_BYTES and size % PREFIX_BYTES == 0


def shared(blob: bytes, digests: Iterable[str]) -> int:
    """How many of these sha256 digests (hex) the blob has; 0 for a blob that is none."""
    if not fits(len(blob)):
        return 0
    entries = range(len(blob) // PREFIX_BYTES)

    def entry(i: int) -> bytes:
        return blob[i * PREFIX_BYTES : (i + 1) * PREFIX_BYTES]

    count = 0
    for digest in digests:
        wanted = bytes.fromhex(digest)[:PREFIX_BYTES]
        at = bisect_left(entries, wanted, key=entry)
        count += at < len(entries) and entry(at) == wanted
    return count
