"""Labels that stand in the names of pictures: `cat.0.jpg`, and not `IMG.0001.jpg`. Pure."""

from collections.abc import Sequence
from typing import Final

from apiary.learn.folder import labels as naming

_CAMERA_WORDS: Final = frozenset(
    [
        "capture",
        "dsc",
        "dscn",
        "frame",
        "image",
        "img",
        "photo",
        "picture",
        "pxl",
        "scan",
        "screenshot",
        "vid",
    ]
)
"""What cameras and phones begin file names with."""


def label_of_name(name: str) -> str | None:
    """The label in `LABEL.0.jpg` and `LABEL.4a3f.ingestion-1.jpg`; None where the name has no such part."""
    parts = name.split(".")
    return naming.readable(parts[0]) if len(parts) > 2 and any(c.isalpha() for c in parts[0]) else None


def labels_of_names(names: Sequence[str]) -> bool:
    """Whether most of these names begin with a label, and not with what a camera calls its files."""
    found = [label for name in names if (label := label_of_name(name)) is not None]
    distinct = {naming.key(label) for label in found}
    if 2 * len(found) <= len(names) or distinct <= _CAMERA_WORDS:
        return False
    # A file's name with dots in it is no label: those repeat.
    return len(distinct) == 1 or 2 * len(distinct) <= len(found)
