"""A slot: a release on this node's disk that passed its test, and how it is written down. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from apiary.wire.messages import PictureShape, Release


@dataclass(frozen=True, slots=True)
class Findings:
    """What a test found: of `pictures` held-out ones so many right, by this release and by the one before.

    `right_before` is None where there was none before that knows these labels; `inference_ms` is the median
    of one picture.
    """

    pictures: int
    right: int
    right_before: int | None
    inference_ms: float

    @property
    def accuracy(self) -> float | None:
        """Share that was right, None without pictures."""
        return self.right / self.pictures if self.pictures else None

    @property
    def accuracy_before(self) -> float | None:
        """The same of the release before."""
        return self.right_before / self.pictures if self.pictures and self.right_before is not None else None


@dataclass(frozen=True, slots=True)
class Slot:
    """What prediction uses. `path` is the file; `labels` are in the model's order; `input` as trained.

    `accuracy` is on this node's own held-out pictures, None where it has none.
    """

    kind: Literal["tflite", "eim"]
    path: Path
    labels: tuple[str, ...]
    digest: str
    release: str
    attempt: int
    bytes: int
    input: PictureShape
    tested: Findings

    @property
    def accuracy(self) -> float | None:
        """On this node's own held-out pictures."""
        return self.tested.accuracy


def slot_of(release: Release, path: Path, tested: Findings) -> Slot:
    """The slot of a release whose file lies at `path`."""
    return Slot(
        kind=release.kind,
        path=path,
        labels=tuple(release.labels),
        digest=release.file.digest,
        release=release.name,
        attempt=release.attempt,
        bytes=release.file.bytes,
        input=release.input,
        tested=tested,
    )


def to_json(slot: Slot) -> dict[str, Any]:
    """As in `current.json`; `file` is the name within the folder of the slots."""
    return {
        "v": 1,
        "kind": slot.kind,
        "file": slot.path.name,
        "labels": list(slot.labels),
        "digest": slot.digest,
        "release": slot.release,
        "attempt": slot.attempt,
        "bytes": slot.bytes,
        "input": slot.input.model_dump(),
        "accuracy": slot.accuracy,
        "tested": asdict(slot.tested),
    }


def from_json(value: Mapping[str, Any], folder: Path) -> Slot:
    """Read it back. Raises ValueError, KeyError or TypeError for anything else."""
    if value["v"] != 1 or value["kind"] not in ("tflite", "eim"):
        raise ValueError
    name = str(value["file"])
    if PurePath(name).name != name or name in ("", "."):
        raise ValueError
    return Slot(
        kind=value["kind"],
        path=folder / name,
        labels=tuple(str(label) for label in value["labels"]),
        digest=str(value["digest"]),
        release=str(value["release"]),
        attempt=int(value["attempt"]),
        bytes=int(value["bytes"]),
        input=PictureShape.model_validate(value["input"]),
        tested=Findings(**value["tested"]),
    )
