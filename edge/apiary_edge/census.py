"""How many pictures of each label a folder holds, without opening one: cheap enough for the service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from apiary.errors import DataError
from apiary.wire.messages import MAX_LABELS, fits_label

SUFFIXES: Final = (".jpg", ".jpeg", ".png")
LAYOUT: Final = "expected one folder a label with its pictures, such as DATA/cat/001.jpg and DATA/dog/002.png"


def count(folder: Path | None) -> dict[str, int]:
    """Pictures by label, sorted. Raises DataError where the folder is missing, no folder, or empty."""
    if folder is None:
        raise DataError(f"no data folder is set: give --data DIR (edge.data_dir); {LAYOUT}")
    try:
        found = {
            entry.name: sum(1 for f in os.scandir(entry.path) if f.name.lower().endswith(SUFFIXES))
            for entry in os.scandir(folder)
            # The trainer warns of the folders left out here: no model can know them.
            if entry.is_dir() and not entry.name.startswith(".") and fits_label(entry.name)
        }
    except OSError as e:
        raise DataError(f"data folder {folder}: {e.strerror}; {LAYOUT}") from None
    labels = {label: n for label, n in sorted(found.items()) if n}
    if not labels:
        raise DataError(f"data folder {folder} holds no pictures; {LAYOUT}")
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"data folder {folder} holds {len(labels)} labels, expected at most {MAX_LABELS}; {LAYOUT}"
        )
    return labels
