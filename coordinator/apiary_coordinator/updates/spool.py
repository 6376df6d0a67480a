"""Accepted updates of one round in one file, each in a slot of its own; synced before any receipt.

One file, because a whole group of updates is then made durable by a single `fdatasync`, and because an
upload on its way needs no memory: its chunks are written where they belong. All slots have the size of the
largest update that the round admits: a slot that becomes free serves every other.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from apiary.errors import StoreError
from apiary.files import disk_errors, sync_folder, write_all


class Spool:
    """Slots hold `slot_bytes` each, begin at multiples of the page size, and are named by their offset."""

    def __init__(self, path: Path, slot_bytes: int, *, sync: bool = True):
        self._path = path
        self._sync = sync
        self._slot_bytes = _aligned(slot_bytes)
        self._free: list[int] = []
        self._in_use = 0
        with disk_errors(f"cannot open the spool {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with disk_errors(f"cannot sync the spool's folder {path.parent}"):
            try:
                size = os.fstat(self._fd).st_size
                self._end = -(-size // self._slot_bytes) * self._slot_bytes
                if sync:
                    sync_folder(path.parent)  # the journal will name what lies here
            except OSError:
                os.close(self._fd)
                raise

    def keep(self, taken: Iterable[tuple[int, int]]) -> None:
        """After a restart: all is free but these slots, given with the bytes that each holds.

        What the version before left there may have slots of other sizes.
        """
        each, kept = self._slot_bytes, list(taken)
        used = {i for slot, size in kept for i in range(slot // each, -(-(slot + size) // each))}
        self._free = [i * each for i in range(self._end // each) if i not in used]
        self._in_use = len(kept)

    def allocate(self, max_slots: int) -> int:
        """A free slot; its room on the disk is taken now.

        Raises StoreError on a full disk, and where `max_slots` are in use already.
        """
        if self._in_use >= max_slots:
            raise StoreError(
                f"the spool {self._path} holds {self._in_use} updates, at most {max_slots} may be there"
            )
        slot = self._free[-1] if self._free else self._end
        with disk_errors(f"no room for an update of {self._slot_bytes} bytes in {self._path}"):
            os.posix_fallocate(self._fd, slot, self._slot_bytes)
        self._in_use += 1
        if self._free:
            self._free.pop()
        else:
            self._end += self._slot_bytes
        return slot

    def release(self, slot: int) -> None:
        """Let the next upload have the slot."""
        self._in_use -= 1
        self._free.append(slot)

    def write(self, slot: int, offset: int, data: bytes | memoryview) -> None:
        """Write a part of an update. Raises StoreError."""
        with disk_errors(f"cannot write to the spool {self._path}"):
            write_all(self._fd, data, slot + offset)

    @contextmanager
    def view(self, slot: int, size: int) -> Iterator[memoryview]:
        """An update's bytes, mapped. Every view of them must be gone when the block ends, or BufferError."""
        with (
            mmap.mmap(self._fd, size, access=mmap.ACCESS_READ, offset=slot) as mapped,
            memoryview(mapped) as view,
        ):
            yield view

    def read(self, slot: int, offset: int, size: int) -> bytes:
        """A part of an update. Raises StoreError."""
        with disk_errors(f"cannot read the spool {self._path}"):
            data = os.pread(self._fd, size, slot + offset)
        if len(data) < size:
            raise StoreError(f"the spool {self._path} ends within an update")
        return data

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        if self._sync:
            with disk_errors(f"cannot sync the spool {self._path}"):
                os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; what it holds stays."""
        os.close(self._fd)

    def remove(self) -> None:
        """Remove the file: the round is done. Raises StoreError."""
        with disk_errors(f"cannot remove the spool {self._path}"):
            self._path.unlink(missing_ok=True)


def _aligned(size: int) -> int:
    return -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
