"""Folders of pictures as a source to share out: one set, or one folder for each of several owners."""

import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.folder import labels as naming
from apiary.learn.folder import walk
from apiary.learn.folder.kinds import TEXTS
from apiary.learn.folder.layout import Group
from apiary.learn.folder.splits import Split
from apiary.learn.folder.walk import FolderContents
from apiary.learn.manifest import PictureInput

Labels = NDArray[np.int64]
OnProgress = Callable[[int, int], None]
"""Called with pictures opened or written so far, and all."""
_BLOCK: Final = 2**20
_TRIED_AS: Final = PictureInput(height=16, width=16, channels=3)
"""Small: a JPEG is decoded at an eighth of its size."""
_MOST_NAMED: Final = 20
"""Damaged files that are named one by one."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Picture files; `names` are unique within a label. `notes` are what its owner should know.

    `owners` int64[N] says of which of several folders each training picture is.
    """

    labels: list[str]
    train: list[tuple[Path, str]]
    y_train: Labels
    test: list[tuple[Path, str]]
    y_test: Labels
    owners: Labels
    notes: list[str] = field(default_factory=list)

    def write(self, split: str, index: int, folder: Path) -> None:
        """As a hard link to the original, or a copy where the file system has none."""
        path, name = (self.train if split == "train" else self.test)[index]
        try:
            os.link(path.resolve(), folder / name)
        except FileExistsError:
            raise
        except OSError:
            shutil.copyfile(path, folder / name)

    def file_name(self, split: str, index: int) -> str:
        """What `write` calls it."""
        return (self.train if split == "train" else self.test)[index][1]


@dataclass(slots=True)
class _Part:
    """Files of the training or of the test part, while they are gathered."""

    files: list[tuple[Path, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def take(self, names: "_Names", group: Group, owner: int) -> None:
        for name in group.names:
            self.files.append((names.folder / group.folder / name, names.unique(group, name)))
            self.labels.append(group.label or "")
            self.owners.append(owner)

    def leave_out_damaged(self, on_progress: OnProgress | None) -> list[str]:
        """Keep what training can decode; a line for each other file, with the reason.

        A node and the server would leave them out too, but their shares would hold less than is counted here.
        """
        kept, lines = [], []
        for i, (path, _) in enumerate(self.files):
            try:
                if path.suffix.lower() not in TEXTS:
                    images.decode(images.read(path), _TRIED_AS)
                kept.append(i)
            except DataError as e:
                lines.append(f"left out: {naming.shown('/'.join(path.parts[-2:]))}: {e}")
            if on_progress is not None and (i % 50 == 49 or i + 1 == len(self.files)):
                on_progress(i + 1, len(self.files))
        self.files = [self.files[i] for i in kept]
        self.labels = [self.labels[i] for i in kept]
        self.owners = [self.owners[i] for i in kept]
        return lines


@dataclass(slots=True)
class _Names:
    """Names for the files of one folder, unique within a label over all folders."""

    folder: Path
    prefixed: bool
    taken: set[tuple[str, str]]

    def unique(self, group: Group, name: str) -> str:
        wanted = f"{self.folder.name}-{name}" if self.prefixed else name
        around = "-".join([self.folder.name, *filter(None, group.folder.split("/"))])
        number = 0
        while (group.label or "", wanted) in self.taken:
            wanted = f"{around}-{number}-{name}" if number else f"{around}-{name}"
            number += 1
        self.taken.add((group.label or "", wanted))
        return wanted


def open_folders(
    folders: Sequence[Path],
    *,
    tests: Sequence[Path] = (),
    join_labels: bool = False,
    prefixed: bool = False,
    on_progress: OnProgress | None = None,
) -> FolderSource:
    """One set of pictures, of one folder or of several, each understood by itself. Raises DataError.

    Of `tests` the test parts alone count. `prefixed`: every file's name begins with its folder's.
    """
    found = [_look(folder, join_labels=join_labels) for folder in (*folders, *tests)]
    if join_labels:
        known = tuple(sorted({g.label for c in found for g in c.layout.groups if g.label is not None}))
        spelling = naming.joined(Counter(known))
        found = [walk.join(c, tuple(dict.fromkeys(spelling.values()))) for c in found]
    train, test = _Part(), _Part()
    taken: set[tuple[str, str]] = set()
    for owner, contents in enumerate(found):
        names = _Names(contents.folder, prefixed, taken)
        for group in contents.layout.groups if owner < len(folders) else contents.layout.held_out():
            if group.label is not None:
                part = train if group.split is Split.TRAIN else test
                part.take(names, group, owner)
    damaged = [*train.leave_out_damaged(on_progress), *test.leave_out_damaged(on_progress)]
    labels = sorted({*train.labels, *(u for c in found for u in c.layout.unused)})
    _check(labels, test.labels, folders, found)
    notes = [line for c in found for line in (*c.layout.understood, *c.messages())]
    if len(found) > 1:
        notes += [
            f"labels {' and '.join(map(repr, group))} differ in case, blanks or hyphens only: give them one "
            "name, or set --join-labels"
            for group in naming.alike(labels)
        ]
    notes += damaged[:_MOST_NAMED]
    if len(damaged) > _MOST_NAMED:
        notes.append(f"and {len(damaged) - _MOST_NAMED} more are no readable pictures, and left out")
    notes += repeats(
        [(p, y, "train") for (p, _), y in zip(train.files, train.labels, strict=True)]
        + [(p, y, "test") for (p, _), y in zip(test.files, test.labels, strict=True)]
    )
    place = {label: i for i, label in enumerate(labels)}
    return FolderSource(
        labels,
        train.files,
        np.array([place[y] for y in train.labels], np.int64),
        test.files,
        np.array([place[y] for y in test.labels], np.int64),
        np.array(train.owners, np.int64),
        notes,
    )


def repeats(files: Iterable[tuple[Path, str, str]]) -> list[str]:
    """What is printed of pictures with the same bytes, given as path, label and part: a sentence a kind.

    Only files of equal size are read.
    """
    by_size: dict[int, list[tuple[Path, str, str]]] = defaultdict(list)
    for one in files:
        try:
            by_size[one[0].stat().st_size].append(one)
        except OSError:
            continue  # whoever reads it next says so
    by_digest: dict[str, list[tuple[Path, str, str]]] = defaultdict(list)
    for group in by_size.values():
        if len(group) > 1:
            for one in group:
                by_digest[_digest(one[0])].append(one)
    same = [group for digest, group in by_digest.items() if digest and len(group) > 1]
    leaked = [g for g in same if len({part for _, _, part in g}) > 1]
    torn = [g for g in same if len({label for _, label, _ in g}) > 1]
    plain = [g for g in same if g not in leaked and g not in torn]
    lines = []
    if leaked:
        lines.append(
            f"{naming.pictures(len(leaked))} both to train on and held out, such as {_names(leaked[0])}: "
            "accuracy will look better than it is; remove them from one"
        )
    if torn:
        lines.append(
            f"{naming.pictures(len(torn))} under several labels, such as {_names(torn[0])}: keep one of each"
        )
    if plain:
        lines.append(f"{naming.pictures(len(plain))} more than once, such as {_names(plain[0])}")
    return lines


def _look(folder: Path, *, join_labels: bool) -> FolderContents:
    contents = walk.look_for_samples(folder)
    if contents.layout.sets:
        raise DataError(f"{contents.nothing('train')} Several that are named become a node each.")
    return walk.join(contents) if join_labels else contents


def _check(
    labels: list[str], tested: list[str], folders: Sequence[Path], found: list[FolderContents]
) -> None:
    where = ", ".join(map(str, folders))
    if not labels:
        why = "\n".join([found[0].nothing("train"), *found[0].messages()[:5]])
        raise DataError(why)
    if lost := sorted(set(tested) - set(labels)):
        raise DataError(f"{where}: {', '.join(lost)}: a test label that no training picture has")
    if len(labels) < 2:
        raise DataError(f"{where}: found 1 class ({labels[0]}), expected two or more")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while block := f.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _names(group: list[tuple[Path, str, str]]) -> str:
    return " and ".join(naming.shown("/".join(path.parts[-3:])) for path, _, _ in group[:2])
