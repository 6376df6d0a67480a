"""A slot: a release on this node's disk that passed its test, and how it is written down. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from apiary.wire.messages import MAX_LABELS, Hex, Label, PictureShape, Release
from apiary.wire.messages.releases import ReleaseKind


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


class Slot(BaseModel):
    """What prediction uses. `path` is the file; `labels` are in the model's order; `input` as trained."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ReleaseKind
    path: Path
    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=MAX_LABELS)]
    digest: Hex
    release: str
    attempt: int
    bytes: int
    input: PictureShape
    tested: Findings

    @property
    def accuracy(self) -> float | None:
        """On this node's own held-out pictures, None where it has none."""
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
    fields = slot.model_dump(mode="json", exclude={"path"})
    return {"v": 1, **fields, "file": slot.path.name, "accuracy": slot.accuracy}


def from_json(value: Mapping[str, Any], folder: Path) -> Slot:
    """Read it back. Raises ValueError or KeyError for anything else."""
    name = str(value["file"])
    if value["v"] != 1 or PurePath(name).name != name or name in ("", "."):
        raise ValueError
    return Slot.model_validate({**value, "path": folder / name})
