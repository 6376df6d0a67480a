"""What leaves the store when it is full, in this order:

1. pictures without a label and without a suggestion, the oldest first;
2. pictures with a suggestion but no label, the oldest first;
3. where a label has more than its share: its samples that are not held out, labelled longest ago first.

A labelled picture never leaves for want of room in the whole store, and a held-out one never by itself: a
newcomer that finds nothing of 1 and 2 is refused, with the settings to change.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.errors import StoreError
from apiary_edge.samples.model import SampleId, SampleRefused

if TYPE_CHECKING:
    from apiary.settings import StoreSettings

_OPEN_OLDEST_FIRST: Final = """
SELECT id, bytes FROM sample WHERE label IS NULL ORDER BY suggested IS NOT NULL, number"""
_LABEL_OLDEST_FIRST: Final = """
SELECT id FROM sample WHERE label = ? AND NOT held_out ORDER BY labelled_at, number LIMIT ?"""


class StoreRoom:
    """Decides, inside the store's write transaction, what has to leave; it changes nothing itself."""

    def __init__(self, db: sqlite3.Connection, bounds: StoreSettings, folder: Path):
        self._db = db
        self._bounds = bounds
        self._folder = folder

    def for_newcomer(self, size: int, label: str | None) -> list[SampleId] | SampleRefused:
        """Who leaves for a picture of `size` bytes; refused where nobody may."""
        bounds = self._bounds
        free = _free_bytes(self._folder)
        if free < bounds.min_free_mb * 2**20 + size:
            return SampleRefused(
                f"the disk has {free // 2**20} MB free, and {bounds.min_free_mb} MB are to stay free "
                "(edge.store.min_free_mb): delete something",
                full=True,
            )
        if label is not None and self._of(label) >= bounds.max_per_label:
            return SampleRefused(
                f"label {label!r} has {bounds.max_per_label} pictures, all it may have "
                "(edge.store.max_per_label): raise it, or delete some",
            )
        count, used = self._db.execute("SELECT count, bytes FROM total").fetchone()
        over_count, over_bytes = count + 1 - bounds.max_count, used + size - bounds.max_mb * 2**20
        victims: list[SampleId] = []
        if over_count > 0 or over_bytes > 0:
            for victim, freed in self._db.execute(_OPEN_OLDEST_FIRST):
                victims.append(SampleId(victim))
                over_count, over_bytes = over_count - 1, over_bytes - freed
                if over_count <= 0 and over_bytes <= 0:
                    break
        if over_count > 0 or over_bytes > 0:
            return SampleRefused(
                f"the store is full of labelled pictures: {count} of {bounds.max_count}, {used // 2**20} of "
                f"{bounds.max_mb} MB; raise edge.store.max_count or edge.store.max_mb, "
                "or delete some",
                full=True,
            )
        return victims

    def over_label(self, label: str) -> list[SampleId]:
        """Who leaves because the label has more samples than it may have."""
        over = self._of(label) - self._bounds.max_per_label
        if over <= 0:
            return []
        return [SampleId(i) for (i,) in self._db.execute(_LABEL_OLDEST_FIRST, (label, over))]

    def _of(self, label: str) -> int:
        row = self._db.execute("SELECT count FROM tally WHERE label = ?", (label,)).fetchone()
        return int(row[0]) if row else 0


def _free_bytes(folder: Path) -> int:
    try:
        stat = os.statvfs(folder)
    except OSError as e:
        raise StoreError(f"cannot ask for the free space of {folder}: {e.strerror}") from e
    return stat.f_bavail * stat.f_frsize
