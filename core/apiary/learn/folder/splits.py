"""Which part of a set a folder or a word means: to train on, or to test with. Pure."""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final


class Split(StrEnum):
    """Parts of a set; what is not `TRAIN` is never trained."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


_WORDS: Final[dict[str, Split]] = {
    "train": Split.TRAIN, "training": Split.TRAIN, "trn": Split.TRAIN,
    "valid": Split.VALID, "validation": Split.VALID, "val": Split.VALID, "dev": Split.VALID,
    "test": Split.TEST, "testing": Split.TEST, "tst": Split.TEST, "eval": Split.TEST,
    "evaluation": Split.TEST, "holdout": Split.TEST, "publictest": Split.VALID, "privatetest": Split.TEST,
}  # fmt: skip
_YEAR: Final = re.compile(r"(?:19|20)\d\d$")
"""`train2017`, as COCO names its parts."""
_FILLERS: Final = frozenset(
    {"set", "data", "dataset", "images", "imgs", "pictures", "split", "samples", "only"}
)


def split_of(name: str) -> Split | None:
    """What a folder's name or a word of a table means: `Training`, `val`, `test_set`; None for any other."""
    words = [w for w in re.split(r"[\W_]+", name.strip().casefold()) if w]
    if len(words) > 1 and words[0].isdecimal():  # `1-train`, in an order
        words = words[1:]
    words = [_YEAR.sub("", w) or w for w in words]
    meant = [w for w in words if w not in _FILLERS]
    for ending in ("set", "data", "images"):
        if len(meant) == 1 and meant[0] not in _WORDS:
            meant = [meant[0].removesuffix(ending)]
    return _WORDS.get(meant[0]) if len(meant) == 1 else None


def prefixed(kids: Sequence[str]) -> dict[str, Split]:
    """Parts whose names begin alike, as `seg_train` and `seg_test`; empty where it is not all of them."""
    words = [k.replace("-", "_").rpartition("_") for k in kids]
    found = {k: s for k, (_, _, word) in zip(kids, words, strict=True) if (s := split_of(word)) is not None}
    alike = len({before.lower() for before, _, _ in words}) == 1 and bool(words[0][0])
    return (
        found if alike and len(kids) > 1 and len(found) == len(kids) and Split.TRAIN in found.values() else {}
    )
