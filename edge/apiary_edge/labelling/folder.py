"""Labels by folder: `FOLDER/LABEL/*.jpg|png` into the store; what lies right in FOLDER has no label."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apiary.errors import DataError
from apiary.learn.sample_files import PICTURES
from apiary_edge.cameras._still import read_file
from apiary_edge.samples.model import Added, Duplicate, Incoming, check_label
from apiary_edge.samples.store import SampleStore

MAX_REASONS: Final = 20
"""Refused files that are named; the others are counted."""


@dataclass(slots=True)
class Imported:
    """What became of a folder's pictures; `refused` names at most MAX_REASONS files with their reasons.

    `relabelled` were in the store without a label and have one now; `stopped` says why it ended early.
    """

    added: int = 0
    relabelled: int = 0
    duplicates: int = 0
    refused_count: int = 0
    evicted: int = 0
    refused: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None

    @property
    def seen(self) -> int:
        """Files that were looked at."""
        return self.added + self.duplicates + self.relabelled + self.refused_count


def count(folder: Path) -> int:
    """How many files an import would look at. Raises DataError where there is no such folder."""
    return sum(1 for _ in _files(folder, Imported()))


def import_folder(
    store: SampleStore,
    folder: Path,
    *,
    label: str | None = None,
    progress: Callable[[Imported], None] | None = None,
) -> Imported:
    """Take a folder's pictures in; `label` for those right in it. Links and hidden files are left out.

    Done again, it goes on where it was cut off: what the store has is known by its digest. Files are read one
    after the other, names as they come, so that 100,000 of them take no more memory than one batch.
    Raises DataError for a folder or label that cannot be meant, StoreError for the disk.
    """
    if label is not None:
        check_label(label)
    done = Imported()
    waiting: deque[tuple[Path, str | None]] = deque()

    def incoming() -> Iterator[Incoming]:
        for path, of_folder in _files(folder, done):
            try:
                data = read_file(path)
                at = path.stat(follow_symlinks=False).st_mtime
            except (DataError, OSError) as e:
                _refuse(done, path, str(e))
                continue
            given = of_folder if of_folder is not None else label
            waiting.append((path, given))
            yield Incoming(data, str(path.relative_to(folder)), given, captured_at=at)

    for outcome in store.add_many(incoming()):
        path, given = waiting.popleft()
        match outcome:
            case Added(_, evicted):
                done.added += 1
                done.evicted += len(evicted)
                done.labels[given or ""] += 1
            case Duplicate(_, relabelled):
                done.relabelled += relabelled
                done.duplicates += not relabelled
            case refused:
                _refuse(done, path, refused.why)
                if refused.full:
                    done.stopped = refused.why
                    break
        if not waiting and progress is not None:
            progress(done)
    return done


def _files(folder: Path, done: Imported) -> Iterator[tuple[Path, str | None]]:
    """Picture files, and the label that their folder gives them."""
    if folder.is_symlink() or not folder.is_dir():
        raise DataError(
            f"{folder}: no folder; expected one with a folder for each label, such as FOLDER/cat/1.jpg"
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: this user may not read it")
    for entry in _entries(folder, done):
        if not entry.is_dir(follow_symlinks=False):
            if _is_picture(entry):
                yield Path(entry.path), None
            continue
        try:
            label = check_label(entry.name)
        except DataError as e:
            if not entry.name.startswith("."):
                _refuse(done, Path(entry.path), str(e))
            continue
        for file in _entries(Path(entry.path), done):
            if _is_picture(file):
                yield Path(file.path), label


def _entries(folder: Path, done: Imported) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as e:
        _refuse(done, folder, f"cannot be read: {e.strerror}")


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return (
        entry.name.lower().endswith(PICTURES)
        and not entry.name.startswith(".")
        and entry.is_file(follow_symlinks=False)
    )


def _refuse(done: Imported, path: Path, why: str) -> None:
    done.refused_count += 1
    if len(done.refused) < MAX_REASONS:
        done.refused.append(f"{path}: {why}")
