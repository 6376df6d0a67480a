"""How many pictures of each label a node has, without opening one: cheap enough for the service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from apiary.errors import DataError
from apiary.learn.folder import labels as naming
from apiary.learn.folder import layout, walk
from apiary.learn.folder.walk import LAYOUT
from apiary.wire.messages import MAX_LABELS

if TYPE_CHECKING:
    from apiary_edge.samples.store import SampleStore


@dataclass(frozen=True, slots=True)
class FolderCount:
    """A data folder's pictures by label; without their names, which would take 7 MB of 100,000.

    `understood` says how the folder is read, `left_out` what is not and why, a sentence each; `stamps` are
    when its folders changed.
    """

    folder: Path
    labels: Mapping[str, int]
    understood: tuple[str, ...]
    left_out: tuple[str, ...]
    stamps: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Census:
    """Pictures that may be trained by label, sorted; `waiting` have no label yet (None without a store)."""

    labels: dict[str, int] = field(default_factory=dict)
    waiting: int | None = None
    folder: FolderCount | None = None
    joined: bool = False

    @property
    def understood(self) -> tuple[str, ...]:
        """How the folder is read, a sentence each."""
        return self.folder.understood if self.folder is not None else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """What of the folder is not read and why, a sentence each."""
        lines = self.folder.left_out if self.folder is not None else ()
        return tuple(line for line in lines if not (self.joined and "join_labels" in line))


def take(
    folder: Path | None,
    store: SampleStore | None = None,
    *,
    join_labels: bool = False,
    known: Sequence[str] = (),
    before: Census | None = None,
) -> Census:
    """What may be trained of a folder, of a store's samples, or of both. `known` are the model's labels.

    A folder that is as it was `before` is not listed again.

    Raises DataError where the folder is missing, no folder, or empty. With a store there may be nothing yet:
    its pictures wait for their labels. A picture that both hold counts twice here, in training once.
    """
    found: Counter[str] = Counter()
    waits = None
    if store is not None:
        counts = store.counts()
        for label, n in counts.trainable.items():
            found[naming.readable(label)] += n
        waits = counts.unlabelled + sum(counts.suggested.values())
    counted = None
    if folder is not None or store is None:
        try:
            counted = _of_folder(folder, before.folder if before is not None else None)
            found.update(counted.labels)
        except DataError:
            if store is None or not found:
                raise
    if join_labels:
        spelling = naming.joined(found, known)
        joined: Counter[str] = Counter()
        for label, n in found.items():
            joined[spelling[label]] += n
        found = joined
    return Census(dict(sorted(found.items())), waits, counted, join_labels)


def _of_folder(folder: Path | None, before: FolderCount | None) -> FolderCount:
    if folder is None:
        raise DataError(f"no data folder is set: give --data DIR (edge.data_dir); {LAYOUT}")
    if before is not None and before.folder == folder and walk.unchanged(folder, before.stamps):
        return before
    contents = walk.look_for_samples(folder)
    labels = layout.counts(contents.chosen("train"))
    if not labels:
        raise DataError("\n".join([contents.nothing("train"), *contents.messages()[:3]]))
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"data folder {folder} holds {len(labels)} labels, expected at most {MAX_LABELS}; {LAYOUT}"
        )
    understood, left_out = tuple(contents.understood("train")), tuple(contents.messages())
    return FolderCount(folder, labels, understood, left_out, contents.stamps)
