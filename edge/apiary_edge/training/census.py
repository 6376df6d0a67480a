"""How many pictures of each label a node has, without opening one: cheap enough for the service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.errors import DataError
from apiary.learn.sample_files import PICTURES, TEXTS
from apiary.wire.messages import MAX_LABELS, fits_label

if TYPE_CHECKING:
    from apiary_edge.samples.store import SampleStore

LAYOUT: Final = "expected one folder a label with its pictures, such as DATA/cat/001.jpg and DATA/dog/002.png"


def count(folder: Path | None, store: SampleStore | None = None) -> dict[str, int]:
    """What may be trained, by label, sorted: of a folder, of a store's samples, or of both.

    Raises DataError where the folder is missing, no folder, or empty. With a store there may be nothing yet:
    its pictures wait for their labels. A picture that both hold counts twice here, in training once.
    """
    if store is None:
        return _of_folder(folder)
    found = dict(store.counts().trainable)
    if folder is not None:
        try:
            of_folder = _of_folder(folder)
        except DataError:
            if not found:
                raise
            of_folder = {}
        for label, n in of_folder.items():
            found[label] = found.get(label, 0) + n
    return dict(sorted(found.items()))


def waiting(store: SampleStore) -> int:
    """How many pictures of a store have no label yet."""
    counts = store.counts()
    return counts.unlabelled + sum(counts.suggested.values())


def _of_folder(folder: Path | None) -> dict[str, int]:
    if folder is None:
        raise DataError(f"no data folder is set: give --data DIR (edge.data_dir); {LAYOUT}")
    try:
        # Texts only where there is no picture at all: a note in a folder of pictures is no sample.
        labels = _with(folder, PICTURES) or _with(folder, TEXTS)
    except OSError as e:
        raise DataError(f"data folder {e.filename or folder}: {e.strerror}; {LAYOUT}") from None
    if not labels:
        raise DataError(f"data folder {folder} holds no pictures; {LAYOUT}")
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"data folder {folder} holds {len(labels)} labels, expected at most {MAX_LABELS}; {LAYOUT}"
        )
    return labels


def _with(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """How many files end like this, by label, sorted, where there are any."""
    found = {
        entry.name: sum(1 for f in os.scandir(entry.path) if f.name.lower().endswith(suffixes))
        for entry in os.scandir(folder)
        # The trainer warns of the folders left out here: no model can know them.
        if entry.is_dir() and not entry.name.startswith(".") and fits_label(entry.name)
    }
    return {label: n for label, n in sorted(found.items()) if n}
