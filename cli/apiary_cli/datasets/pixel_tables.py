"""A CSV whose rows are pictures: a label, pixels in one column, as in FER2013, or in many, as in MNIST."""

import csv
import math
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.folder import tables
from apiary.learn.folder.splits import Split, split_of
from apiary.learn.folder.tables import LABEL_COLUMNS, SPLIT_COLUMNS

MAX_BYTES: Final = 1024 * 2**20
_EMOTIONS: Final = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""What FER2013 means by 0 to 6 in its column `emotion`."""

_MOST_HEADER: Final = 200_000
"""Characters: 2,352 columns are 25,000."""
Rows = tuple[list[str], list[NDArray[np.uint8]]]


def holds_pixels(path: Path) -> bool:
    """Whether a file is such a table, by its first line."""
    try:
        with path.open(encoding=_encoding(path), errors="replace") as f:
            return tables.has_pixels(tables.header_of(f.readline(_MOST_HEADER)))
    except OSError:
        return False


def read_pixels(path: Path) -> tuple[Rows, Rows]:
    """Labels and uint8[H, H] or uint8[H, H, 3] pictures, to train on and to test with.

    Raises DataError naming the line.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES // 2**20} MB")
    train: Rows = ([], [])
    test: Rows = ([], [])
    with path.open(encoding=_encoding(path), errors="replace", newline="") as f:
        header = f.readline(_MOST_HEADER)
        columns = tables.header_of(header)
        rows = csv.reader(f, delimiter=tables.delimiter_of(header), skipinitialspace=True)
        named = tables.pixel_columns(columns)
        if not named:
            raise DataError(
                f"{path}: no pixels in it; expected a column pixels, or one for each (pixel0, pixel1, ...); "
                f"it has {', '.join(columns[:8])}"
            )
        at = next((columns.index(c) for c in LABEL_COLUMNS if c in columns), None)
        if at is None:
            raise DataError(f"{path}: pixels and no label; it has {', '.join(columns[:8])}")
        usage = next((columns.index(c) for c in SPLIT_COLUMNS if c in columns), None)
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            try:
                cells = row[named[0]].split() if len(named) == 1 else [row[i] for i in named]
                pixels = np.array(cells, np.float64).astype(np.int32)
                if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
                    raise ValueError
                label = row[at].strip()
                split = split_of(row[usage]) if usage is not None else None
                picture = _square(pixels.astype(np.uint8), in_colour=len(named) > 1)
            except (ValueError, IndexError, OverflowError):
                raise DataError(
                    f"{path}, line {number}: expected a label and the pixels of a square"
                ) from None
            labels, pictures = train if split in (None, Split.TRAIN) else test
            labels.append(_name(columns[at], label))
            pictures.append(picture)
    return train, test


def _encoding(path: Path) -> str:
    with path.open("rb") as f:
        return tables.encoding_of(f.read(4))


def _square(pixels: NDArray[np.uint8], *, in_colour: bool) -> NDArray[np.uint8]:
    """[H, H]; with `in_colour` [H, H, 3] where only that is a square. Raises ValueError."""
    side = math.isqrt(pixels.size)
    if in_colour and side * side != pixels.size and pixels.size % 3 == 0:
        side = math.isqrt(pixels.size // 3)
        return pixels.reshape(side, side, 3)
    return pixels.reshape(side, side)


def _name(column: str, label: str) -> str:
    if column == "emotion" and label in {str(i) for i in range(len(_EMOTIONS))}:
        return _EMOTIONS[int(label)]
    return label
