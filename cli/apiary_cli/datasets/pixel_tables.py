"""A CSV whose rows are pictures: a label, and grey pixels with blanks between, as FER2013 comes."""

import csv
import math
from pathlib import Path
from typing import Final

import numpy as np

from apiary.errors import DataError
from apiary.learn.folder.splits import Split, split_of
from apiary.learn.folder.tables import LABEL_COLUMNS, PIXELS, SPLIT_COLUMNS

MAX_BYTES: Final = 1024 * 2**20
_EMOTIONS: Final = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""What FER2013 means by 0 to 6 in its column `emotion`."""

Rows = tuple[list[str], list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]


def holds_pixels(path: Path) -> bool:
    """Whether a file is such a table, by its first line."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as f:
            return PIXELS in [cell.strip().lower() for cell in f.readline(10_000).split(",")]
    except OSError:
        return False


def read_pixels(path: Path) -> tuple[Rows, Rows]:
    """Labels and uint8[H, H] pictures, to train on and to test with. Raises DataError naming the line."""
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES // 2**20} MB")
    train: Rows = ([], [])
    test: Rows = ([], [])
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as f:
        rows = csv.reader(f)
        columns = [cell.strip().lower() for cell in next(rows, [])]
        at = next((columns.index(c) for c in LABEL_COLUMNS if c in columns), None)
        if at is None:
            raise DataError(f"{path}: a column pixels and no label; it has {', '.join(columns)}")
        usage = next((columns.index(c) for c in SPLIT_COLUMNS if c in columns), None)
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            try:
                pixels = np.array(row[columns.index(PIXELS)].split(), np.int32)
                side = math.isqrt(pixels.size)
                if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
                    raise ValueError
                label = row[at].strip()
                split = split_of(row[usage]) if usage is not None else None
                picture = pixels.astype(np.uint8).reshape(side, side)
            except (ValueError, IndexError, OverflowError):
                raise DataError(
                    f"{path}, line {number}: expected a label and the pixels of a square"
                ) from None
            labels, pictures = train if split in (None, Split.TRAIN) else test
            labels.append(_name(columns[at], label))
            pictures.append(picture)
    return train, test


def _name(column: str, label: str) -> str:
    if column == "emotion" and label in {str(i) for i in range(len(_EMOTIONS))}:
        return _EMOTIONS[int(label)]
    return label
