"""Accepted updates of one round in one file, each in a slot of its own; synced before any receipt.

One file, because a whole group of updates is then made durable by a single `fdatasync`, and because an
upload on its way needs no memory: its chunks are written where they belong.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apiary.files import disk_errors, sync_folder, write_all


class Spool:
    """Slots begin at multiples of the page size and are named by their offset."""

    def __init__(self, path: Path, *, sync: bool = True):
        self._path = path
        self._sync = sync
        self._free: dict[int, list[int]] = {}
        with disk_errors(f"cannot open the spool {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with disk_errors(f"cannot sync the spool's folder {path.parent}"):
            try:
                self._end = _aligned(os.fstat(self._fd).st_size)
                if sync:
                    sync_folder(path.parent)  # the journal will name what lies here
            except OSError:
                os.close(self._fd)
                raise

    def allocate(self, size: int) -> int:
        """A slot for `size` bytes; its room on the disk is taken now. Raises StoreError on a full disk."""
        if free := self._free.get(_aligned(size)):
            return free.pop()
        slot = self._end
        with disk_errors(f"no room for an update of {size} bytes in {self._path}"):
            os.posix_fallocate(self._fd, slot, _aligned(size))
        self._end += _aligned(size)
        return slot

    def release(self, slot: int, size: int) -> None:
        """Let the next upload of this size have the slot."""
        self._free.setdefault(_aligned(size), []).append(slot)

    def write(self, slot: int, offset: int, data: bytes | memoryview) -> None:
        """Write a part of an update. Raises StoreError."""
        with disk_errors(f"cannot write to the spool {self._path}"):
            write_all(self._fd, data, slot + offset)

    @contextmanager
    def view(self, slot: int, size: int) -> Iterator[memoryview]:
        """An update's bytes, mapped. Every view of them must be gone when the block ends."""
        with mmap.mmap(self._fd, size, access=mmap.ACCESS_READ, offset=slot) as mapped:
            view = memoryview(mapped)
            try:
                yield view
            finally:
                try:
                    view.release()
                except BufferError as e:  # pragma: no cover - a bug of ours
                    raise AssertionError("a view of the spool outlived its block") from e

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
