"""Pictures of the store, scaled for a screen, as JPEG; a few megabytes of them are kept."""

import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from apiary.errors import DataError
from apiary.learn.sample_files import MAX_FILE_BYTES, opened_picture
from apiary_edge.samples.clean import fit_in_memory

SIDES: Final = {"small": 240, "large": 1280}
"""Longest side in pixels: a cell of the grid on a dense screen, and the picture in the hand."""
CACHE_BYTES: Final = 8 * 2**20
_QUALITY: Final = 85


class Thumbnails:
    """A cache of scaled pictures, bounded in bytes; safe for many threads."""

    def __init__(self, max_bytes: int = CACHE_BYTES):
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        # One at a time: a PNG of 16 million pixels takes 48 MB while it is scaled.
        self._scaling = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """How much is kept."""
        return self._bytes

    def get(self, sample: str, path: Path, size: str) -> bytes:
        """The JPEG of `size` (a key of SIDES). Raises DataError where the file cannot be shown."""
        key = (sample, size)
        if (kept := self._known(key)) is not None:
            return kept
        with self._scaling:
            if (kept := self._known(key)) is not None:
                return kept
            data = _scaled(path, SIDES[size])
        with self._lock:
            self._bytes += len(data) - len(self._kept.pop(key, b""))
            self._kept[key] = data
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def forget(self, sample: str) -> None:
        """Drop what is kept of a deleted picture."""
        with self._lock:
            for size in SIDES:
                self._bytes -= len(self._kept.pop((sample, size), b""))

    def _known(self, key: tuple[str, str]) -> bytes | None:
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
            return kept


def _scaled(path: Path, side: int) -> bytes:
    from apiary.learn.modes import plain

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"expected at most {MAX_FILE_BYTES} bytes")
        with opened_picture(path) as opened:
            opened.draft("RGB", (side, side))
            fit_in_memory(opened)
            # The store's pictures are upright already.
            small = plain(opened, 3)
            small.thumbnail((side, side))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=_QUALITY)
    except (DataError, OSError) as e:
        raise DataError(f"{path.name}: cannot be shown: {e}") from None
    return out.getvalue()
