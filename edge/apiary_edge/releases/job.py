"""The request to the child that tests a release, and its answer: JSON files."""

from pathlib import Path

from apiary.wire.messages import PictureShape
from apiary.wire.messages.releases import ReleaseKind
from apiary_edge.child_messages import ChildMessage


class TrialModel(ChildMessage):
    """A file to run, and what it must say of itself."""

    kind: ReleaseKind
    file: Path
    labels: list[str]
    input: PictureShape


class TrialJob(ChildMessage):
    """A release, and the present one to compare it with on the same pictures.

    Pictures are the held-out ones of `store`, and of `data_dir` the `folder_share` that training keeps for
    validation.
    """

    model: TrialModel
    before: TrialModel | None
    store: Path | None
    data_dir: Path | None
    join_labels: bool = False
    folder_share: float
    max_pictures: int
    threads: int
    out: Path


class TrialResult(ChildMessage):
    """What it came to. `failed`: the release is not what its manifest says, or does not answer well."""

    pictures: int = 0
    right: int = 0
    right_before: int | None = None
    inference_ms: float = 0.0
    failed: str | None = None
