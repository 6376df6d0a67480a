"""Where the pictures lie: `pictures/AB/ID.jpg|png`, found by id; no name from outside is ever a path."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apiary.errors import StoreError
from apiary.files import remove, sync_folder, write_atomic
from apiary_edge.samples.model import SampleId, check_id

PREFIXES: Final = tuple(f"{i:02x}" for i in range(256))


class Pictures:
    """The folder of picture files."""

    def __init__(self, folder: Path):
        self.folder = folder

    def prepare(self) -> None:
        """Make the folders, synced, for this user alone. Raises StoreError."""
        try:
            if (self.folder / PREFIXES[-1]).is_dir():
                return
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for prefix in PREFIXES:
                (self.folder / prefix).mkdir(exist_ok=True, mode=0o700)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        except OSError as e:
            raise StoreError(f"cannot use the folder {self.folder}: {e.strerror}") from e

    def path(self, sample: SampleId, suffix: str) -> Path:
        """Where a sample's file lies. Raises DataError for what is no id."""
        return self.folder / check_id(sample)[:2] / f"{sample}.{suffix}"

    def write(self, sample: SampleId, suffix: str, data: bytes, *, sync: bool) -> None:
        """Write a picture, whole or not at all. Raises StoreError."""
        write_atomic(self.path(sample, suffix), data, sync=sync)

    def remove(self, sample: SampleId, suffix: str) -> None:
        """Remove a file that may be there. Raises StoreError."""
        remove(self.path(sample, suffix))

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns: one wait for a batch of files."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _SYNCFS is None:
                os.sync()
            elif _SYNCFS(fd) != 0:
                code = ctypes.get_errno()
                raise StoreError(f"cannot sync {self.folder}: {os.strerror(code)}")
        finally:
            os.close(fd)

    def names(self, prefix: str) -> Iterator[os.DirEntry[str]]:
        """The entries of one of the PREFIXES, in no order."""
        try:
            with os.scandir(self.folder / prefix) as entries:
                yield from entries
        except FileNotFoundError:
            (self.folder / prefix).mkdir(mode=0o700)


class Reserve:
    """A file that only takes up room: on a full disk even deleting needs some, for the index's journal."""

    BYTES: Final = 2**20

    def __init__(self, file: Path):
        self._file = file

    def keep(self) -> None:
        """Take the room up, where there is any; a disk that is full now is tried again later."""
        with contextlib.suppress(OSError):
            fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < self.BYTES:
                    os.posix_fallocate(fd, 0, self.BYTES)
            finally:
                os.close(fd)

    def release(self) -> bool:
        """Give it back; whether there was any."""
        try:
            held = self._file.stat().st_size > 0
            self._file.unlink()
        except OSError:
            return False
        return held


def forget_cached(cache: Path, samples: list[SampleId]) -> int:
    """Remove what `apiary.learn.cache` keeps of pictures, in all its spaces; returns how many entries.

    Files only, so that a process without numpy can do it.
    """
    removed = 0
    try:
        spaces = [s.path for s in os.scandir(cache) if s.is_dir()]
    except OSError:
        return 0
    for space in spaces:
        for sample in samples:
            try:
                Path(space, sample[:2], sample).unlink()
                removed += 1
            except FileNotFoundError:
                continue
            except OSError as e:
                raise StoreError(f"cannot remove cached pixels in {space}: {e.strerror}") from e
    return removed


def _find_syncfs() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None


_SYNCFS: Final = _find_syncfs()
