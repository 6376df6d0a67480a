"""What a sample is and what may be asked of many. Pure: no files, no clock."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NewType

from apiary.errors import DataError
from apiary.wire.messages import MAX_LABEL_CHARS, fits_label

SampleId = NewType("SampleId", str)
"""The sha256 (hex) of the stored file; the caches of decoded pictures and features have the same key."""

MAX_PAGE: Final = 200
"""Samples in one page: a phone shows a dozen at a time, and a page is held in memory whole."""
_ID: Final = re.compile(r"[0-9a-f]{64}")


class SampleState(StrEnum):
    """How far a sample is: only labelled ones are trained, and of those only what is not held out."""

    UNLABELLED = "unlabelled"
    SUGGESTED = "suggested"
    LABELLED = "labelled"


class Order(StrEnum):
    """How a page is sorted; `uncertain`: the suggestions with the lowest probability first."""

    NEWEST = "newest"
    OLDEST = "oldest"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a model says of a picture; `model` is the digest of the model's blob."""

    label: str
    probability: float
    model: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture. `suggestion` stays when a label is given, so that the two can be compared.

    `captured_at` is in seconds since 1970 and may be wrong on a node without a clock; `number` counts up as
    samples come and is what orders them.
    """

    id: SampleId
    number: int
    label: str | None
    suggestion: Suggestion | None
    held_out: bool
    captured_at: float
    source: str
    bytes: int
    width: int
    height: int
    labelled_by: str | None = None
    labelled_at: float | None = None

    @property
    def state(self) -> SampleState:
        """Labelled, else suggested, else unlabelled."""
        if self.label is not None:
            return SampleState.LABELLED
        return SampleState.SUGGESTED if self.suggestion is not None else SampleState.UNLABELLED


@dataclass(frozen=True, slots=True)
class Filter:
    """Which samples: of a state, with a label or still without, of a label (or suggested one), held out."""

    state: SampleState | None = None
    labelled: bool | None = None
    label: str | None = None
    held_out: bool | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """At most MAX_PAGE samples, and how many the filter finds in all."""

    samples: tuple[Sample, ...]
    total: int
    offset: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """A picture on its way into the store: its file's bytes, and their source (a camera or file).

    `captured_at` None means now. `automatic` pictures (a camera's) do not come back once their owner deleted
    them. `likeness` is the perceptual hash of a captured frame. `held_out` None lets the digest decide.
    """

    data: bytes
    source: str
    label: str | None = None
    captured_at: float | None = None
    automatic: bool = False
    likeness: int | None = None
    held_out: bool | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """The picture is in the store; `evicted` had to leave for it."""

    id: SampleId
    evicted: tuple[SampleId, ...] = ()


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The store holds this picture already; `labelled`: it had no label and now has the one given."""

    id: SampleId
    labelled: bool = False


@dataclass(frozen=True, slots=True)
class SampleRefused:
    """The picture was not taken; `full`: for want of room, so that others will not fit either."""

    why: str
    full: bool = False


Outcome = Added | Duplicate | SampleRefused


@dataclass(frozen=True, slots=True)
class Undone:
    """An undone labelling: who had done it, and which samples have their former label again."""

    who: str
    ids: tuple[SampleId, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelling that was carried out: its step of undo (None where nothing changed), how many changed."""

    step: int | None
    changed: int


@dataclass(frozen=True, slots=True)
class Outdated:
    """Nothing was changed: these samples have another label than the one shown, and these are gone."""

    samples: tuple[Sample, ...]
    gone: tuple[SampleId, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The labelling that undo would take back: its number, whose it is, how many samples it changed."""

    number: int
    who: str
    changed: int


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A labelled picture file that may be trained; `digest` is its SampleId."""

    file: str
    label: str
    digest: SampleId
    bytes: int


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """How many samples there are; `held_out` are those of `labelled` that are never trained."""

    labelled: Mapping[str, int] = field(default_factory=dict)
    held_out: Mapping[str, int] = field(default_factory=dict)
    suggested: Mapping[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    total: int = 0
    bytes: int = 0

    @property
    def trainable(self) -> dict[str, int]:
        """Samples of each label that are trained."""
        left = {label: n - self.held_out.get(label, 0) for label, n in self.labelled.items()}
        return {label: n for label, n in left.items() if n}


def check_id(text: str) -> SampleId:
    """`text` where it is a sample's id, which is also safe as a file name. Raises DataError."""
    if not _ID.fullmatch(text):
        raise DataError(f"{text[:80]!r} is no sample id: expected 64 characters of 0-9 and a-f")
    return SampleId(text)


def check_label(text: str) -> str:
    """`text` where it may be a label, also as a folder's name. Raises DataError."""
    if (
        not fits_label(text)
        or text != text.strip()
        or text.startswith(".")
        or "/" in text
        or not text.isprintable()
    ):
        raise DataError(
            f"{text[:80]!r} cannot be a label: expected 1 to {MAX_LABEL_CHARS} printable characters, no '/', "
            "no '.' or blank at the beginning, no blank at the end"
        )
    return text


def is_held_out(sample: SampleId, share: float) -> bool:
    """Whether a picture is never trained: decided by its digest alone, so that adding it again agrees."""
    return int(sample[:8], 16) < share * 2**32
