"""Lists a folder of pictures within bounds, and says how it is meant: what counting, training, importing and
sharing out all go by. Cheap to import: no Pillow, no numpy."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from apiary.errors import DataError
from apiary.learn.folder import kinds, labels, layout, tables
from apiary.learn.folder.layout import FolderLayout, Group
from apiary.learn.folder.tree import Tree

MAX_FILES: Final = 1_000_000
MAX_DEPTH: Final = 12
MAX_TABLE_BYTES: Final = 8 * 2**20
"""Of one table, and of all together: a CSV of 100,000 pictures takes 3 MB."""
SETTLED_NS: Final = 5 * 10**9
"""A folder that changed within this time before it was listed is listed again the next time."""
MAX_NAMED: Final = 20
"""Of what is left out, so many are named; the others are counted."""
LAYOUT: Final = "expected a folder for each label with its pictures: DATA/cat/001.jpg, DATA/dog/002.png"

Use = Literal["train", "test"]
"""What pictures are wanted for: a set's test part is never trained."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class FolderContents:
    """A folder as it is understood. `foreign` counts files of kinds that are not read.

    `stamps` are the times of change of all folders and tables by path, None where they are too fresh.
    """

    folder: Path
    layout: FolderLayout
    foreign: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    stamps: Mapping[str, int] | None = None

    def chosen(self, use: Use) -> list[Group]:
        """The groups for this use, labelled ones alone."""
        return self.layout.training() if use == "train" else self.layout.held_out()

    def messages(self) -> list[str]:
        """What is left out and what to do about it, a sentence each."""
        lines = [*self.layout.warnings, *self.foreign_lines()]
        lines += [f"{labels.shown(str(s.path))}: left out: {s.why}" for s in self.skipped[:MAX_NAMED]]
        if len(self.skipped) > MAX_NAMED:
            lines.append(f"{len(self.skipped) - MAX_NAMED} more are left out")
        return lines

    def foreign_lines(self) -> list[str]:
        """How many files of which kind are not read, and what to do about them."""
        return [f"not read, {kind}: {n} ({kinds.advice(kind)})" for kind, n in self.foreign.items()]

    def understood(self, use: Use) -> list[str]:
        """How the folder is read, where that is not a folder a label, a sentence each."""
        lines = list(self.layout.understood)
        if use == "train" and self.layout.has_test_part:
            n = sum(len(g.names) for g in self.layout.held_out())
            lines.append(f"not trained, of the test part: {n}")
        if use == "test" and self.layout.has_training_part and self.layout.has_test_part:
            n = sum(len(g.names) for g in self.layout.training())
            lines.append(f"not tested with, of the training part: {n}")
        return lines

    def nothing(self, use: Use) -> str:
        """Why there is no picture for this use, and what was meant perhaps."""
        where = f"data folder {self.folder}"
        if self.layout.sets:
            names = [str(self.folder / s) for s in self.layout.sets]
            more = f" (and {len(names) - 5} more)" if len(names) > 5 else ""
            return (
                f"{where} holds {len(names)} sets of pictures, each with labels of its own: did you mean "
                f"{', '.join(names[:5])}{more}?"
            )
        if use == "train" and self.layout.has_test_part:
            return f"{where} holds pictures to test with only, which are never trained; {LAYOUT}"
        if self.layout.unlabelled:
            return f"{where} holds pictures, but not in folders by label; {LAYOUT}"
        if self.layout.groups or self.foreign or self.layout.warnings:
            return f"{where} holds no pictures that can be used; {LAYOUT}"
        return f"{where} holds no pictures; {LAYOUT}"


def look(folder: Path, *, texts: bool = False) -> FolderContents:
    """List `folder` and understand it; `texts` counts those instead of pictures. Raises DataError.

    Links that lead out of the folder are not followed; hidden names and leftovers of file managers
    do not count.
    """
    check_folder(folder)
    walk = _Walk(folder, kinds.TEXTS if texts else picture_suffixes())
    tree = walk.tree()
    found = layout.understand(tree)
    foreign = {} if texts else dict(sorted(walk.foreign.items()))
    skipped = tuple(sorted(walk.skipped, key=lambda s: str(s.path)))
    return FolderContents(folder, found, foreign, skipped, walk.trusted_stamps())


def not_a_folder(path: Path) -> str:
    """What a file is that stands in a folder's place."""
    is_archive = kinds.foreign(path.name) == "archives"
    return "it is an archive: unpack it, and name the folder" if is_archive else "it is a file"


def look_for_samples(folder: Path) -> FolderContents:
    """Pictures, or texts where there is no picture at all: a note in a folder of pictures is no sample."""
    found = look(folder)
    if not found.layout.groups and not found.layout.sets:
        as_texts = look(folder, texts=True)
        if any(g.label is not None for g in as_texts.layout.groups):
            return as_texts
    return found


def join(contents: FolderContents, known: tuple[str, ...] = ()) -> FolderContents:
    """The same with one spelling for labels that are alike (`labels.key`), that of `known` first."""
    spelling = labels.joined(
        {**dict.fromkeys(contents.layout.unused, 0), **layout.counts(contents.layout.groups)}, known
    )
    groups = [
        replace(g, label=spelling[g.label]) if g.label is not None else g for g in contents.layout.groups
    ]
    groups.sort(key=lambda g: (g.label or "", g.folder))
    used = {g.label for g in groups}
    made = replace(
        contents.layout,
        groups=tuple(groups),
        unused=tuple(sorted({spelling[u] for u in contents.layout.unused} - used)),
        warnings=tuple(w for w in contents.layout.warnings if "join_labels" not in w),
    )
    return replace(contents, layout=made)


@cache
def picture_suffixes() -> tuple[str, ...]:
    """How the names of pictures that can be decoded here end."""
    return (*kinds.PICTURES, *(kinds.HEIC if reads_heic() else ()), *(kinds.AVIF if reads_avif() else ()))


@cache
def reads_heic() -> bool:
    """Whether the extra `heic` is installed."""
    return find_spec("pillow_heif") is not None


@cache
def reads_avif() -> bool:
    """Whether this Pillow decodes AVIF: wheels do from 11.3 on, except for 32 bit."""
    return find_spec("PIL") is not None and find_spec("PIL._avif") is not None


def check_folder(folder: Path) -> None:
    """Raises DataError where there is no such folder, or this user may not read it."""
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist; {LAYOUT}")
    if not folder.is_dir():
        raise DataError(f"data folder {folder}: {not_a_folder(folder)}; {LAYOUT}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"data folder {folder} may not be read by this user")


def unchanged(folder: Path, stamps: Mapping[str, int] | None) -> bool:
    """Whether a folder is as it was when these `FolderContents.stamps` were taken; lists nothing."""
    return stamps is not None and all(_stamp(folder / path) == stamp for path, stamp in stamps.items())


def _stamp(path: Path) -> int:
    """When it was changed, 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


class _Walk:
    """One listing; names come in sorted, links are checked, sizes are bounded."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...]):
        self.skipped: list[Skipped] = []
        self.foreign: Counter[str] = Counter()
        self._folder = folder
        self._root = Path(os.path.realpath(folder))
        self._suffixes = suffixes
        self._files: dict[str, list[str]] = {}
        self._folders: dict[str, list[str]] = {}
        self._tables: dict[str, str] = {}
        self._table_bytes = 0
        self._foreign_in: set[str] = set()
        self._empty: set[str] = set()
        self._count = 0
        self._stamps: dict[str, int] = {}
        self._began_ns = time.time_ns()

    def tree(self) -> Tree:
        self._list("", 1)
        return Tree(
            self._files, self._folders, self._tables, frozenset(self._foreign_in), frozenset(self._empty)
        )

    def trusted_stamps(self) -> dict[str, int] | None:
        """None where something changed just now: a file system may count in steps of 2 s."""
        fresh = max(self._stamps.values(), default=0) > self._began_ns - SETTLED_NS
        return None if fresh else self._stamps

    def _list(self, at: str, depth: int) -> None:
        self._stamps[at] = _stamp(self._folder / at)
        files: list[str] = []
        folders: list[str] = []
        other = False
        for entry in self._entries(at):
            self._count += 1
            if self._count > MAX_FILES:
                raise DataError(f"data folder {self._folder} holds more than {MAX_FILES} files: share them")
            is_folder = self._is_folder(entry)
            if entry.is_symlink() and not self._stays(entry, is_folder):
                continue
            if is_folder:
                folders.append(entry.name)
            elif entry.name.lower().endswith(self._suffixes):
                if entry.is_file():
                    files.append(entry.name)
            else:
                other = True
                self._note(at, entry)
        if files:
            self._files[at] = sorted(files)
        if folders:
            self._folders[at] = sorted(folders)
        if not files and not folders and not other:
            self._empty.add(at)
        for name in self._folders.get(at, ()):
            below = f"{at}/{name}" if at else name
            if depth > MAX_DEPTH:
                self.skipped.append(Skipped(self._folder / below, f"deeper than {MAX_DEPTH} folders"))
                continue
            self._list(below, depth + 1)

    def _entries(self, at: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self._folder / at) as entries:
                for entry in entries:
                    if not kinds.is_ignored(entry.name):
                        yield entry
        except OSError as e:
            # Not left out: a label whose folder is shut would vanish from training.
            mend = ""
            if isinstance(e, PermissionError):
                mend = "; let this user read it (chmod -R a+rX), or take it out of the data folder"
            raise DataError(f"data folder {self._folder / at}: {e.strerror}{mend}") from None

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link that leads to itself
            return False

    def _stays(self, entry: os.DirEntry[str], is_folder: bool) -> bool:
        """Whether a link leads to something in the folder; what it does not is left out."""
        wanted = is_folder or entry.name.lower().endswith(self._suffixes)
        why = None
        try:
            real = Path(entry.path).resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
            why = "a link that leads nowhere"
        else:
            if not real.is_relative_to(self._root):
                why = "a link that leads out of the data folder"
            elif is_folder:
                why = "a link to a folder that is in the data folder already"
        if why is not None and wanted:
            self.skipped.append(Skipped(Path(entry.path), why))
        return why is None

    def _note(self, at: str, entry: os.DirEntry[str]) -> None:
        """A file that is no sample: a table is read, a kind that is not read is counted."""
        name = entry.name
        kind = kinds.foreign(name)
        if kind is None and self._suffixes is not kinds.TEXTS and self._is_misnamed(entry):
            kind = kinds.MISNAMED
        if kind is not None:
            self.foreign[kind] += 1
            if kinds.is_foreign_picture(kind):
                self._foreign_in.add(at)
        elif name in (kinds.INFO_LABELS, kinds.CLASS_NAMES) or kinds.suffix_of(name) in kinds.TABLES:
            self._read_table(at, entry)

    def _is_misnamed(self, entry: os.DirEntry[str]) -> bool:
        """Whether a picture hides behind a name like `photo`, `photo.jpg_large` or `photo.jpg.bak`."""
        if kinds.is_plain_text(entry.name) or not entry.is_file():
            return False
        try:
            with Path(entry.path).open("rb") as f:
                return kinds.begins_like_a_picture(f.read(16))
        except OSError:
            return False

    def _read_table(self, at: str, entry: os.DirEntry[str]) -> None:
        try:
            if not entry.is_file():
                return
            with Path(entry.path).open("rb") as f:
                data = f.read(MAX_TABLE_BYTES - self._table_bytes + 1)
        except OSError as e:
            self.skipped.append(Skipped(Path(entry.path), f"cannot be read: {e.strerror}"))
            return
        if len(data) + self._table_bytes > MAX_TABLE_BYTES:
            many = MAX_TABLE_BYTES // 2**20
            why = f"tables of more than {many} MB; apiary data partition takes one with pixels"
            self.skipped.append(Skipped(Path(entry.path), why))
            return
        self._table_bytes += len(data)
        self._stamps[f"{at}/{entry.name}" if at else entry.name] = _stamp(Path(entry.path))
        self._tables[f"{at}/{entry.name}" if at else entry.name] = tables.decoded(data)
