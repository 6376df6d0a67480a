"""How a folder of pictures is meant: which picture has which label, and which ones test. Pure.

    LABEL/*.jpg                        the folder's name is the label, also of what lies deeper in it
    train/LABEL, valid/, test/         in any spelling; what is not to train on is held out
    archive/dataset/...                folders around a set are passed through
    LABEL.0.jpg                        flat, as Kaggle and Edge Impulse's uploader name files
    info.labels                        Edge Impulse's export
    labels.csv beside images/          a column with names, one with labels, perhaps one with the split
    Class 1-samples/                   Teachable Machine; labels.txt beside it names the classes
    a/train/LABEL, b/train/LABEL       several sets: none is chosen

Whatever cannot be meant for sure has no label, and is counted with what to do about it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from apiary.errors import DataError
from apiary.learn.folder import labels as naming
from apiary.learn.folder import tables
from apiary.learn.folder.file_names import label_of_name, labels_of_names
from apiary.learn.folder.kinds import CLASS_NAMES, INFO_LABELS
from apiary.learn.folder.splits import Split, prefixed, split_of
from apiary.learn.folder.tables import FileLabel, FileLabels
from apiary.learn.folder.tree import Tree, folders_between, join, relative

_WRAPPERS: Final = frozenset(
    {
        "all", "archive", "data", "dataset", "files", "image", "images", "img", "imgs", "input", "jpegimages",
        "jpeg", "jpg", "photo", "photos", "pics", "picture", "pictures", "png", "raw", "samples",
    }
)  # fmt: skip
"""Names of a single folder that are about files, not about what is on the pictures."""
_DATES: Final = re.compile(r"[\d_. :-]*\d[\d_. :-]*")
_SHARE: Final = re.compile(r"node-\d+|server")
_DEFAULT_CLASS: Final = re.compile(r"class(\d+)")
MAX_WARNINGS: Final = 20
SEPARATE: Final = "put each into a folder with its label's name, such as {folder}/cat/1.jpg"


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures of one folder with one label, None for those without; names are sorted."""

    folder: str
    label: str | None
    split: Split
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """`groups` are sorted by label and folder. `understood` says how, `warnings` what is left out and why.

    `unused` are labels whose folder holds no picture that is read. `sets` are folders that are each a set of
    their own: then there are no groups.
    """

    groups: tuple[Group, ...] = ()
    understood: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    @property
    def has_training_part(self) -> bool:
        """Whether anything labelled is to train on."""
        return any(g.label is not None and g.split is Split.TRAIN for g in self.groups)

    @property
    def has_test_part(self) -> bool:
        """Whether anything labelled is set apart for testing."""
        return any(g.label is not None and g.split is not Split.TRAIN for g in self.groups)

    @property
    def unlabelled(self) -> int:
        """Pictures without a label."""
        return sum(len(g.names) for g in self.groups if g.label is None)

    def training(self) -> list[Group]:
        """What may be trained."""
        return [g for g in self.groups if g.label is not None and g.split is Split.TRAIN]

    def held_out(self) -> list[Group]:
        """What tests a model: the valid and test parts, or all where the set has none."""
        labelled = [g for g in self.groups if g.label is not None]
        return [g for g in labelled if g.split is not Split.TRAIN] or labelled


def understand(tree: Tree) -> FolderLayout:
    """How the pictures of a listing are meant. Never raises."""
    return _Reader(tree).read()


def counts(groups: Sequence[Group]) -> dict[str, int]:
    """Pictures by label, sorted."""
    found: Counter[str] = Counter()
    for group in groups:
        if group.label is not None:
            found[group.label] += len(group.names)
    return dict(sorted(found.items()))


class _Reader:
    """One look at one tree; what it finds is gathered in its lists."""

    def __init__(self, tree: Tree):
        self._tree = tree
        self._groups: list[Group] = []
        self._understood: dict[str, None] = {}
        self._warnings: list[str] = []
        self._unused: set[str] = set()
        self._deeper: list[str] = []

    def read(self) -> FolderLayout:
        root = self._unwrapped("")
        if root:
            self._understood[f"the set is {naming.shown(root)}/"] = None
        if sets := self._sets(root):
            return FolderLayout(sets=tuple(sets))
        try:
            self._part(root)
        except DataError as e:
            self._warnings.append(str(e))
            self._groups = [Group(at, None, Split.TRAIN, names) for at, names in self._tree.below(root)]
        if (loose := [g for g in self._groups if g.label is None]) and any(len(g.names) for g in loose):
            self._warn_of_loose(loose)
        labelled = {g.label for g in self._groups if g.label is not None}
        for group in naming.alike([*labelled, *self._unused]):
            self._warnings.append(
                f"labels {' and '.join(map(repr, group))} differ in case, blanks or hyphens only: give them "
                "one name, or set join_labels"
            )
        self._warnings += [
            f"{naming.shown(path)} holds the pixels themselves: apiary data partition {naming.shown(path)} "
            "writes pictures"
            for path, text in self._tree.tables.items()
            if tables.has_pixels(tables.header_of(text))
        ]
        if self._deeper:
            more = f" (and {len(self._deeper) - 3} more)" if len(self._deeper) > 3 else ""
            self._understood[
                f"pictures that lie deeper have the upper folder's label: {', '.join(self._deeper[:3])}{more}"
            ] = None
        if len(self._warnings) > MAX_WARNINGS:
            self._warnings[MAX_WARNINGS:] = [f"{len(self._warnings) - MAX_WARNINGS} more like these"]
        self._groups.sort(key=lambda g: (g.label or "", g.folder))
        return FolderLayout(
            tuple(self._groups),
            tuple(self._understood),
            tuple(self._warnings),
            tuple(sorted(self._unused - labelled)),
        )

    # -- which folder is the set, and is it one ----------------------------------------------------------

    def _unwrapped(self, at: str) -> str:
        """The folder that holds the set: passes through folders with one other in them and nothing else."""
        kids = self._tree.kids(at)
        if (
            self._tree.files.get(at)
            or len(kids) != 1
            or split_of(kids[0]) is not None
            or self._tree.empty_kids(at)
        ):
            return at
        kid = join(at, kids[0])
        inner = self._unwrapped(kid)
        inner_kids = self._tree.kids(inner)
        names = self._tree.files.get(inner, ())
        is_set = (
            any(split_of(k) is not None for k in inner_kids)
            or (len(inner_kids) > 1 and not names)
            or join(inner, INFO_LABELS) in self._tree.tables
            or (
                names
                and not inner_kids
                and labels_of_names(names)
                and len(set(map(label_of_name, names))) > 2
            )
        )
        return inner if is_set or (inner != kid and inner_kids) else at

    def _sets(self, at: str) -> list[str]:
        """Folders that are each a set: `a/train/LABEL` and `b/train/LABEL`, or the same labels in each."""
        kids = self._tree.kids(at)
        if len(kids) < 2 or self._tree.files.get(at) or all(split_of(k) is not None for k in kids):
            return []
        paths = [join(at, k) for k in kids]
        if any(self._tree.files.get(p) for p in paths):
            return []
        if all(_SHARE.fullmatch(k) for k in kids):
            return paths  # what `apiary data partition` wrote: one share a node, and the held-out pictures
        below = [self._tree.kids(p) for p in paths]
        if all(any(self._is_split_of_labels(p, k) for k in ks) for p, ks in zip(paths, below, strict=True)):
            return paths
        often = Counter(naming.key(k) for ks in below for k in ks if split_of(k) is None)
        shared = [k for k, n in often.items() if n > 1 and not _DATES.fullmatch(k)]
        return paths if shared else []

    def _is_split_of_labels(self, at: str, kid: str) -> bool:
        part = join(at, kid)
        names = self._tree.files.get(part, ())
        return split_of(kid) is not None and bool(
            self._tree.kids(part) or join(part, INFO_LABELS) in self._tree.tables or labels_of_names(names)
        )

    # -- parts of a set ----------------------------------------------------------------------------------

    def _part(self, at: str) -> None:
        if join(at, INFO_LABELS) in self._tree.tables:
            self._from_table(at, Split.TRAIN, self._info(at))
            return
        kids = self._tree.kids(at)
        splits = {k: s for k in kids if (s := split_of(k)) is not None} or prefixed(kids)
        # A `train` beside `bus` is a vehicle; one with folders in it, or beside `test` alone, is none.
        parted = splits and (
            len(splits) == len(kids)
            or any(s is Split.TRAIN and not self._tree.files.get(join(at, k)) for k, s in splits.items())
        )
        if not self._has_label_folders(at) and (found := self._table(at)) is not None:
            self._from_table(at, Split.TRAIN, found)
        elif parted:
            self._splits(at, splits)
        else:
            self._set(at, Split.TRAIN)

    def _splits(self, at: str, splits: Mapping[str, Split]) -> None:
        train = [k for k, s in splits.items() if s is Split.TRAIN]
        held = [k for k, s in splits.items() if s is not Split.TRAIN]
        words = [f"{', '.join(train)}/ to train on"] * bool(train) + [f"{', '.join(held)}/ held out"] * bool(
            held
        )
        self._understood[" and ".join(words)] = None
        for kid, split in splits.items():
            self._set(join(at, kid), split)
        if names := self._tree.files.get(at):
            self._groups.append(Group(at, None, Split.TRAIN, names))
        for kid in self._tree.kids(at):
            if kid not in splits:
                self._warnings.append(
                    f"{naming.pictures(self._tree.count(join(at, kid)))} in {naming.shown(kid)}/ beside "
                    f"{naming.shown(next(iter(splits)))}/ left out: move them into it"
                )

    def _set(self, at: str, split: Split) -> None:
        """A folder of labels, or of files whose names, or a table, say them."""
        kids = self._tree.kids(at)
        names = self._tree.files.get(at, ())
        if join(at, INFO_LABELS) in self._tree.tables:
            self._from_table(at, split, self._info(at))
        elif len(kids) == 1 and not names and (self._is_wrapper(kids[0]) or kids[0] == at.rpartition("/")[2]):
            self._set(join(at, kids[0]), split)
        elif kids and not names and all(split_of(k) is not None for k in kids):
            # `seg_train/seg_train/LABEL`, as some archives have it: words for parts are never labels.
            for kid in kids:
                inner = split_of(kid)
                self._set(join(at, kid), split if inner in (None, Split.TRAIN) else inner)
        elif not self._has_label_folders(at) and (found := self._table(at)) is not None:
            self._from_table(at, split, found)
        elif kids:
            self._by_folder(at, split)
        elif labels_of_names(names):
            self._by_name(at, split, names)
        elif names:
            self._groups.append(Group(at, None, split, names))

    def _by_folder(self, at: str, split: Split) -> None:
        kids = self._tree.kids(at)
        self._say_unused_table(at)
        renamed = self._named_classes(at, kids)
        for kid in kids:
            label = renamed.get(kid) or naming.of_folder(kid)
            self._say_reading(kid, label)
            folder = join(at, kid)
            if (why := naming.unfit(label)) is not None:
                self._warnings.append(
                    f"{naming.pictures(self._tree.count(folder))} in {label[:80]!r} left out: it cannot be a "
                    f"label: {why}"
                )
                continue
            for deeper, names in self._tree.below(folder):
                inner = next(
                    (s for p in folders_between(folder, deeper) if (s := split_of(p)) is not None), split
                )
                if deeper != folder:
                    part = ", held out" if inner is not Split.TRAIN else ""
                    self._deeper.append(f"{naming.shown(deeper)}/ is {label}{part}")
                self._groups.append(Group(deeper, label, inner, names))
        for kid in self._tree.empty_kids(at):
            label = naming.of_folder(kid)
            if naming.unfit(label) is None and split_of(kid) is None:
                self._unused.add(label)
        if beside := self._tree.files.get(at):
            self._groups.append(Group(at, None, split, beside))

    def _by_name(self, at: str, split: Split, names: Sequence[str]) -> None:
        by_label: dict[str | None, list[str]] = {}
        for name in names:
            by_label.setdefault(label_of_name(name), []).append(name)
        self._understood[
            f"labels come from file names: {naming.shown(names[0])} is "
            f"{label_of_name(names[0]) or 'without one'}"
        ] = None
        self._add(at, split, by_label)

    def _from_table(self, at: str, split: Split, found: FileLabels) -> None:
        self._understood[found.understood] = None
        if found.contradicted:
            self._warnings.append(
                f"{naming.pictures(found.contradicted)} with several labels in the table, and so none: what "
                "shows several things cannot be trained here"
            )
        renamed = {label: naming.readable(label) for label in {f.label or "" for f in found.by_path.values()}}
        for folder, names in self._tree.below(at):
            of_folder = next(
                (s for p in folders_between(at, folder) if (s := split_of(p)) is not None), split
            )
            parts: dict[Split, dict[str | None, list[str]]] = {}
            for name in names:
                one = found.by_path.get(relative(join(folder, name), at), FileLabel(None))
                label = renamed[one.label] if one.label is not None else None
                parts.setdefault(one.split or of_folder, {}).setdefault(label, []).append(name)
            for part, by_label in parts.items():
                self._add(folder, part, by_label)
        held = sorted({str(f.split) for f in found.by_path.values() if f.split not in (None, Split.TRAIN)})
        if held:
            self._understood[f"held out by the table: {', '.join(held)}"] = None

    def _add(self, at: str, split: Split, by_label: Mapping[str | None, list[str]]) -> None:
        for label, names in by_label.items():
            if label is not None and (why := naming.unfit(label)) is not None:
                self._warnings.append(
                    f"{naming.pictures(len(names))} of {label[:80]!r} left out: it cannot be a label: {why}"
                )
                continue
            self._groups.append(Group(at, label, split, names))

    # -- tables ------------------------------------------------------------------------------------------

    def _info(self, at: str) -> FileLabels:
        return tables.labels_of_info(self._tree.tables[join(at, INFO_LABELS)], self._tree.paths_below(at))

    def _table(self, at: str) -> FileLabels | None:
        """The first table, in this folder or around it, that is about the pictures below."""
        paths = self._tree.paths_below(at)
        here, more = at, True
        while more and paths:
            for path, text in self._tree.tables.items():
                folder, _, name = path.rpartition("/")
                if folder != here or name in (INFO_LABELS, CLASS_NAMES):
                    continue
                table = tables.read_table(name, text)
                part = split_of(name.rpartition(".")[0])
                # `train.csv` is about `train/`, where `test/` counts its pictures from 0 as well.
                own = [p for p in paths if part is not None and part in map(split_of, p.split("/")[:-1])]
                if table is not None and (found := tables.labels_of_table(table, own or paths)) is not None:
                    return found
            more = bool(here)
            here = here.rpartition("/")[0]
        return None

    def _say_unused_table(self, at: str) -> None:
        """A table about pictures that lie in folders by label already."""
        try:
            found = self._table(at)
        except DataError:
            return  # which of its columns is the label does not matter
        if found is not None:
            self._understood[f"the folders' names are the labels, and not what {found.table} says"] = None

    def _named_classes(self, at: str, kids: Sequence[str]) -> dict[str, str]:
        """Teachable Machine's `Class 1`, ... by the names that a labels.txt gives them."""
        numbers = {k: m for k in kids if (m := _DEFAULT_CLASS.fullmatch(naming.key(naming.of_folder(k))))}
        text = self._tree.tables.get(join(at, CLASS_NAMES))
        if text is None and at:
            text = self._tree.tables.get(join(at.rpartition("/")[0], CLASS_NAMES))
        names = tables.class_names(text) if text is not None else []
        if not kids or len(numbers) != len(kids):
            return {}
        if sorted(int(m[1]) for m in numbers.values()) != [*range(1, len(names) + 1)]:
            if names:
                self._warnings.append(
                    f"{CLASS_NAMES} has {len(names)} names and is not taken: the folders are "
                    f"{', '.join(map(naming.shown, kids[:5]))}"
                )
            return {}
        found = {k: naming.readable(names[int(m[1]) - 1]) for k, m in numbers.items()}
        first = kids[0]
        self._understood[f"{CLASS_NAMES} names the classes: {naming.of_folder(first)} is {found[first]}"] = (
            None
        )
        return found

    # -- the tree ----------------------------------------------------------------------------------------

    def _has_label_folders(self, at: str) -> bool:
        kids = self._tree.kids(at)
        parts = [k for k in kids if split_of(k) is not None]
        if parts and len(parts) == len(kids):
            return any(self._has_label_folders(join(at, k)) for k in parts)
        return len(kids) > 1 or (len(kids) == 1 and not self._is_wrapper(kids[0]))

    def _is_wrapper(self, name: str) -> bool:
        return naming.key(name) in _WRAPPERS

    def _say_reading(self, name: str, label: str) -> None:
        try:
            name.encode()
        except UnicodeEncodeError:
            self._understood[f"a folder's name that is not UTF-8 is read as {label!r}"] = None

    def _warn_of_loose(self, loose: Sequence[Group]) -> None:
        many = sum(len(g.names) for g in loose)
        first = next(g for g in loose if g.names)
        example = naming.shown(join(first.folder, first.names[0]))
        where = naming.shown(first.folder) or "FOLDER"
        self._warnings.append(
            f"{naming.pictures(many)} without a label, such as {example}: {SEPARATE.format(folder=where)}"
        )
        taken = any(text.startswith("labels come from") for text in self._understood)
        left = [p for p in self._tree.tables if p.rpartition("/")[2] not in (INFO_LABELS, CLASS_NAMES)]
        if left and not taken:
            self._warnings.append(
                f"{naming.shown(left[0])} is not taken: no column of it names these pictures by path or name"
            )
