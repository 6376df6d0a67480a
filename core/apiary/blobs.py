"""Blobs on disk by digest: whole and verified, or not there. Partial ones are put together beside them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from apiary.errors import StoreError
from apiary.files import (
    Stamp,
    advice,
    clear_partial,
    make_folder,
    remove,
    sha256_of,
    stamp,
    sync_folder,
    write_all,
    write_atomic,
)
from apiary.wire import Digest
from apiary.wire.chunks import Assembly, digest_of

_NAME: Final = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder of blobs named by their sha256, bounded: the least recently used go first."""

    def __init__(self, folder: Path, max_bytes: int | None = None):
        self._folder = folder
        self._max_bytes = max_bytes
        self._seen: dict[Digest, Stamp] = {}
        make_folder(folder)
        for left in folder.glob("*.download"):
            remove(left)
        clear_partial(folder)

    def path(self, digest: Digest) -> Path:
        """Where a blob lies, whether or not it is there."""
        return self._folder / digest

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self.path(Digest(digest)).is_file()

    def put(self, data: bytes) -> Digest:
        """Keep these bytes and return their digest."""
        digest = digest_of(data)
        if digest not in self:
            write_atomic(self.path(digest), data)
            self._note(digest)
        return digest

    def read(self, digest: Digest) -> bytes:
        """A blob's bytes, verified. A damaged one is removed and raises StoreError, as does a missing one."""
        try:
            data = self.path(digest).read_bytes()
        except OSError as e:
            raise StoreError(f"blob {digest[:12]} cannot be read from {self._folder}: {e.strerror}") from e
        if digest_of(data) != digest:
            self.remove(digest)
            raise StoreError(f"blob {digest[:12]} in {self._folder} was damaged and has been removed")
        return data

    def read_part(self, digest: Digest, offset: int, length: int) -> bytes:
        """A part of a blob that `verify` or `put` has seen whole. Raises StoreError."""
        try:
            fd = os.open(self.path(digest), os.O_RDONLY)
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except OSError as e:
            raise StoreError(f"blob {digest[:12]} cannot be read from {self._folder}: {e.strerror}") from e

    def remove(self, digest: Digest) -> None:
        """Forget a blob. Raises StoreError."""
        self._seen.pop(digest, None)
        remove(self.path(digest))

    def verify(self, digest: Digest) -> bool:
        """Whether the blob is there and whole; a damaged one is removed. Raises StoreError.

        Hashed once in the life of this store, and again where the file has changed since: a node asks at
        every announcement, and its models are large.
        """
        path = self.path(digest)
        if digest not in self:
            return False
        try:
            whole = self._seen.get(digest) == stamp(path) or sha256_of(path) == digest
        except OSError as e:
            raise StoreError(f"blob {digest[:12]} cannot be read from {self._folder}: {e.strerror}") from e
        if not whole:
            self.remove(digest)
            return False
        with suppress(OSError):  # a card that takes no writes any more: what goes first is all that is lost
            os.utime(path)
        self._note(digest)
        return True

    def begin(self, digest: Digest, size: int) -> Download:
        """Start to put a blob together. Raises StoreError where it does not fit."""
        if self._max_bytes is not None and size > self._max_bytes:
            raise StoreError(
                f"blob {digest[:12]} has {size} bytes, the store {self._folder} holds {self._max_bytes}"
            )
        return Download(self._folder, digest, size, named=lambda: self._note(digest))

    def evict(self, keep: set[Digest]) -> int:
        """Remove the least recently used blobs over the bound, never those in `keep`; returns how many.

        Raises StoreError.
        """
        if self._max_bytes is None:
            return 0
        try:
            files = [(p, p.stat()) for p in self._folder.iterdir() if _NAME.fullmatch(p.name)]
        except OSError as e:
            raise StoreError(f"cannot look into {self._folder}: {e.strerror}") from e
        total = sum(s.st_size for _, s in files)
        gone = 0
        for path, stat in sorted(files, key=lambda f: f[1].st_mtime):
            if total <= self._max_bytes:
                break
            if path.name not in keep:
                self.remove(Digest(path.name))
                total -= stat.st_size
                gone += 1
        return gone

    def _note(self, digest: Digest) -> None:
        """Remember the file as it is now as whole."""
        if (seen := stamp(self.path(digest))) is not None:
            self._seen[digest] = seen


class Download:
    """One blob being put together in a file of its full size, chunk by chunk in any order.

    `named` is called once the blob is whole and lies under its name.
    """

    def __init__(self, folder: Path, digest: Digest, size: int, named: Callable[[], None] = lambda: None):
        self.assembly = Assembly(digest, size)
        self._named = named
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._folder = folder
        self._path = folder / f"{digest}.download"
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as e:
            raise StoreError(f"cannot write blob {digest[:12]} in {folder}: {e.strerror}{advice(e)}") from e
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as e:
            self.abandon()
            raise StoreError(
                f"no room for blob {digest[:12]} of {size} bytes in {folder}: {e.strerror}"
            ) from e

    def accept(self, index: int, payload: bytes) -> bool:
        """Take a chunk; whether it was new. Raises ChunkError and StoreError."""
        taken = self.assembly.accept(index, payload)
        if taken is None:
            return False
        offset, data = taken
        try:
            write_all(self._fd, data, offset)
        except OSError as e:
            self.assembly.lost(index)
            raise StoreError(f"cannot write {self._path}: {e.strerror}") from e
        if offset == self._hashed:
            # Chunks mostly come in order: hashed while they are at hand, the whole need not be read again.
            self._hash.update(data)
            self._hashed += len(data)
        return True

    def finish(self) -> bool:
        """Verify the whole and name it; False, with all chunks missing again, if it does not hold.

        Raises StoreError, with all chunks missing again too, where the disk refuses.
        """
        try:
            with self._path.open("rb") as f:
                f.seek(self._hashed)
                hashlib.file_digest(f, lambda: self._hash)
            if self._hash.hexdigest() != self.assembly.digest:
                self._forget()
                return False
            os.fsync(self._fd)
            self._path.replace(self._folder / self.assembly.digest)
            sync_folder(self._folder)
        except OSError as e:
            self._forget()
            raise StoreError(f"cannot keep blob {self.assembly.digest[:12]}: {e.strerror}") from e
        os.close(self._fd)
        self._named()
        return True

    def abandon(self) -> None:
        """Give up and remove the partial file."""
        os.close(self._fd)
        with suppress(OSError):  # the next start removes it
            self._path.unlink()

    def _forget(self) -> None:
        """Begin anew, also where the file had its name already and the folder could not be synced."""
        if not self._path.exists():
            with suppress(OSError):
                (self._folder / self.assembly.digest).replace(self._path)
        self.assembly.forget()
        self._hash, self._hashed = hashlib.sha256(), 0
