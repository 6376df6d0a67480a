"""A bounded folder of arrays that can be made again: decoded pictures, and features of a frozen base.

Losing an entry costs time, never correctness: entries carry a checksum, are not synced, and a full disk
only switches the cache off.
"""

import contextlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from apiary.errors import StoreError
from apiary.files import clear_partial, write_atomic

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"APC1"


class ArrayCache:
    """Arrays by space (what they are made with) and digest (what they are made of), at most `max_mb` MB.

    One process at a time. The oldest entries go first. `failed` is why nothing is stored any more.
    """

    def __init__(self, folder: Path, max_mb: float):
        self.folder = folder
        self.failed: str | None = None
        self._max_bytes = int(max_mb * 2**20)
        self._sizes: dict[Path, int] | None = None  # oldest first
        self._total = 0

    def get(self, space: str, digest: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any] | None:
        """The entry, or None where there is none, or a torn one (which is removed)."""
        path = self._path(space, digest)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body = memoryview(data)[_HEAD.size :]
        if len(body) != math.prod(shape) * np.dtype(dtype).itemsize or _HEAD.unpack_from(data) != (
            _MAGIC,
            zlib.crc32(body),
        ):
            self._drop(path)
            return None
        return np.frombuffer(body, dtype=dtype).reshape(shape)

    def put(self, space: str, digest: str, array: NDArray[Any]) -> None:
        """Store an entry, evicting the oldest ones where the bound asks for it. Never raises for the disk."""
        path = self._path(space, digest)
        body = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        size = _HEAD.size + len(body)
        if self.failed or size > self._max_bytes:
            return
        sizes = self._entries()
        try:
            write_atomic(path, [_HEAD.pack(_MAGIC, zlib.crc32(body)), body], sync=False)
        except StoreError as e:
            self.failed = f"the cache is off: {e}"
            return
        self._total += size - sizes.pop(path, 0)
        sizes[path] = size
        while self._total > self._max_bytes:
            self._drop(next(iter(sizes)))

    @property
    def nbytes(self) -> int:
        """Bytes that all entries take."""
        self._entries()
        return self._total

    def _path(self, space: str, digest: str) -> Path:
        return self.folder / space / digest[:2] / digest

    def _entries(self) -> dict[Path, int]:
        if self._sizes is None:
            found = []
            for path in (p for p in self.folder.glob("*/*") if p.is_dir()):
                with contextlib.suppress(StoreError):  # as `_drop`
                    clear_partial(path)
                found += [(s.st_mtime_ns, p, s.st_size) for p in path.iterdir() for s in (p.stat(),)]
            self._sizes = {path: size for _, path, size in sorted(found)}
            self._total = sum(self._sizes.values())
        return self._sizes

    def _drop(self, path: Path) -> None:
        self._total -= self._entries().pop(path, 0)
        with contextlib.suppress(OSError):  # it is torn or old, and made again when it is needed
            path.unlink(missing_ok=True)
