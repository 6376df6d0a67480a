"""Pictures of a folder into the store, with the labels that the folder gives them (docs/folders.md)."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apiary.errors import DataError
from apiary.learn.folder import labels as naming
from apiary.learn.folder import walk
from apiary.learn.folder.layout import FolderLayout
from apiary.learn.folder.splits import Split
from apiary.learn.folder.walk import FolderContents
from apiary_edge.cameras._still import read_file
from apiary_edge.samples.model import Added, Duplicate, Incoming, check_label
from apiary_edge.samples.store import SampleStore

MAX_REASONS: Final = 20
"""Files that are named in each list; the others are counted."""


@dataclass(slots=True)
class Imported:
    """What an import did; `refused` and `contradicted` name at most MAX_REASONS files with their reasons.

    `relabelled` were in the store without a label and have one now; `held_out` are the folder's test part;
    `contradicted` are there under another label, which they keep. `stopped` says why it ended early.
    """

    added: int = 0
    relabelled: int = 0
    duplicates: int = 0
    refused_count: int = 0
    evicted: int = 0
    held_out: int = 0
    contradicted_count: int = 0
    contradicted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None

    @property
    def seen(self) -> int:
        """Files that were looked at."""
        return self.added + self.duplicates + self.relabelled + self.refused_count


def look(store: SampleStore, folder: Path, *, join_labels: bool = False) -> FolderContents:
    """What an import would take, and how it is understood. Raises DataError."""
    contents = walk.look(folder)
    if contents.layout.sets:
        raise DataError(contents.nothing("train"))
    return walk.join(contents, tuple(store.labels())) if join_labels else contents


def count(layout: FolderLayout) -> int:
    """How many files an import would look at."""
    return sum(len(group.names) for group in layout.groups)


def import_folder(
    store: SampleStore,
    contents: FolderContents,
    *,
    label: str | None = None,
    progress: Callable[[Imported], None] | None = None,
) -> Imported:
    """Take a folder's pictures in; `label` for those without one, the folder's test part as held out.

    Done again, it goes on where it was cut off: what the store has is known by its digest. One batch of
    pictures is in memory at a time. Raises DataError for a label that cannot be one, StoreError for the disk.
    """
    if label is not None:
        check_label(label)
    done = Imported()
    waiting: deque[Incoming] = deque()

    def incoming() -> Iterator[Incoming]:
        for one in _pictures(contents, label, done):
            waiting.append(one)
            yield one

    for outcome in store.add_many(incoming()):
        one = waiting.popleft()
        match outcome:
            case Added(_, evicted):
                done.added += 1
                done.evicted += len(evicted)
                done.labels[one.label or ""] += 1
                done.held_out += bool(one.held_out)
            case Duplicate(id_, relabelled):
                done.relabelled += relabelled
                done.duplicates += not relabelled
                has = None if one.label is None or relabelled else store.get(id_)
                if has is not None and has.label not in (None, one.label):
                    _note_contradiction(done, one, has.label)
            case refused:
                _refuse(done, one.source, refused.why)
                if refused.full:
                    done.stopped = refused.why
                    break
        if not waiting and progress is not None:
            progress(done)
    return done


def _pictures(contents: FolderContents, label: str | None, done: Imported) -> Iterator[Incoming]:
    for group in contents.layout.groups:
        given = group.label if group.label is not None else label
        held_out = True if group.split is not Split.TRAIN and given is not None else None
        for name in group.names:
            path = contents.folder / group.folder / name
            source = naming.readable(f"{group.folder}/{name}" if group.folder else name)
            try:
                if given is not None:
                    _check(given)
                if path.is_symlink():  # to a file of this folder: others were left out
                    path = path.resolve()
                data = read_file(path)
                at = path.stat().st_mtime
            except (DataError, OSError) as e:
                _refuse(done, source, str(e))
                continue
            yield Incoming(data, source, given, captured_at=at, held_out=held_out)


def _check(label: str) -> None:
    if label != label.strip():
        raise DataError(
            f"{label!r} cannot be a label, for its blanks: --join-labels takes it for {label.strip()!r}"
        )
    check_label(label)


def _refuse(done: Imported, source: str, why: str) -> None:
    done.refused_count += 1
    if len(done.refused) < MAX_REASONS:
        done.refused.append(f"{naming.shown(source)}: {why}")


def _note_contradiction(done: Imported, one: Incoming, has: str | None) -> None:
    done.contradicted_count += 1
    if len(done.contradicted) < MAX_REASONS:
        done.contradicted.append(
            f"{naming.shown(one.source)}: the same picture is there as {has!r}, here it is {one.label!r}"
        )
