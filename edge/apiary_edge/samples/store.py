"""The sample store: the pictures of one node, their labels, and what must never be trained.

Files first, then the row that names them; the row goes first when a picture goes. So a power cut leaves at
most files that no row names, which the next opening removes. Several processes use one store at a time: the
service's labelling page, the capture child, the training child, the command line.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from apiary.errors import DataError, StoreError
from apiary.files import advice, clear_partial, make_folder
from apiary.wire.messages import MAX_LABELS
from apiary_edge.samples import queries, schema
from apiary_edge.samples.eviction import StoreRoom
from apiary_edge.samples.layout import PREFIXES, Pictures, Reserve, forget_cached
from apiary_edge.samples.model import (
    Added,
    Duplicate,
    Incoming,
    Labelled,
    Outcome,
    Outdated,
    Sample,
    SampleId,
    SampleRefused,
    Undone,
    check_id,
    check_label,
    is_held_out,
)
from apiary_edge.samples.reader import SampleReader

if TYPE_CHECKING:
    from apiary.settings import EdgeSettings, StoreSettings
    from apiary_edge.samples.clean import CleanPicture

log = logging.getLogger(__name__)

IMPORT: Final = "import"
"""Who gave the label that a picture came with."""
BATCH: Final = 64
"""Pictures of an import that are synced and committed together: one wait for the disk instead of 192."""
BATCH_BYTES: Final = 8 * 2**20
"""A batch ends here even so: it is held in memory, cleaned and as it came."""
MAX_UNDO: Final = 200
"""Labellings that can be undone; older ones are final."""
MAX_NUMBERED: Final = 2 * MAX_LABELS
"""Labels whose numbers are kept; of more, those that came first and that no picture has are forgotten."""
MAX_DELETED: Final = 20_000
MAX_EVICTED: Final = 1_000
"""Pictures that are gone and remembered, about 200 bytes each."""


class SampleStore(SampleReader):
    """The samples in `folder`; `wall` is seconds since 1970. Methods raise StoreError for the disk.

    `cache` is the folder of `apiary.learn.cache`, so that a deleted picture's pixels and features go as well.
    The metadata of a picture (EXIF with its place, comments, profiles' names) is not stored.
    """

    def __init__(self, folder: Path, cache: Path | None, bounds: StoreSettings, wall: Callable[[], float]):
        self.folder = folder
        self.bounds = bounds
        self._cache = cache
        self._wall = wall
        make_folder(folder, mode=0o700)
        Pictures(folder / "pictures").prepare()
        self._reserve = Reserve(folder / "reserve")
        self._reserve.keep()
        super().__init__(folder)

    @classmethod
    def of_node(cls, edge: EdgeSettings) -> SampleStore:
        """The store of the node with these settings. Raises StoreError."""
        return cls(edge.store_dir, edge.cache_dir, edge.store, time.time)

    # -- pictures in and out ---------------------------------------------------------------------------

    def add(self, incoming: Incoming) -> Outcome:
        """Take one picture: stored and synced when `Added` comes back."""
        return next(self.add_many([incoming]))

    def add_many(self, incoming: Iterable[Incoming]) -> Iterator[Outcome]:
        """Take pictures in batches: an outcome each, in order, after its batch is synced."""
        batch: list[Incoming] = []
        size = 0
        for one in incoming:
            batch.append(one)
            size += len(one.data)
            if len(batch) == BATCH or size >= BATCH_BYTES:
                yield from self._add_batch(batch)
                batch, size = [], 0
        if batch:
            yield from self._add_batch(batch)

    def delete(self, ids: Sequence[SampleId]) -> int:
        """Remove pictures for good: rows, files, cached pixels and features; how many there were.

        There is no undo. The camera does not bring the same picture back; an import does.
        """
        done = self._delete(ids, None)
        assert isinstance(done, int)  # noqa: S101 - without `was` nothing is outdated
        return done

    def delete_shown(self, was: Mapping[SampleId, str | None]) -> int | Outdated:
        """As `delete`, where each sample still has the label that it was shown with; else nothing changes.

        A sample that is gone already is not outdated: a request may be repeated.
        """
        return self._delete(list(was), was)

    # -- labels ----------------------------------------------------------------------------------------

    def label(self, ids: Sequence[SampleId], label: str | None, who: str) -> int:
        """Give samples a label, or take theirs away (None), as one step of undo; how many changed.

        Where the label has more than `bounds.max_per_label` samples then, those labelled longest ago leave
        the store, held-out ones excepted. Raises DataError for a label that cannot be one.
        """
        done = self._label(ids, label, who, None)
        assert isinstance(done, Labelled)  # noqa: S101 - without `was` nothing is outdated
        return done.changed

    def label_shown(
        self, was: Mapping[SampleId, str | None], label: str | None, who: str
    ) -> Labelled | Outdated:
        """As `label`, where each sample still has the label that it was shown with; else nothing changes.

        A sample that has the new label already is not outdated: a request may be repeated.
        """
        return self._label(list(was), label, who, was)

    def undo(self, step: int | None = None) -> Undone | None:
        """Take the latest labelling back; None where there is none left. Deleting is not undone.

        With `step`, None as well where the latest labelling is another one.
        """
        with self._writing():
            last = self._db.execute(
                "SELECT number, who FROM labelling ORDER BY number DESC LIMIT 1"
            ).fetchone()
            if last is None or step not in (None, last[0]):
                return None
            step, who = last
            ids = [SampleId(i) for (i,) in self._db.execute(queries.CHANGED, (step,))]
            self._db.execute(queries.RESTORE, (step,))
            self._db.execute("DELETE FROM labelling WHERE number = ?", (step,))
        return Undone(who, tuple(ids))

    def numbers(self) -> dict[str, int]:
        """Every label that has a number, in their order."""
        return dict(sorted(self._label_numbers().items(), key=lambda one: one[1]))

    def number_labels(self, labels: Iterable[str]) -> dict[str, int]:
        """The number of each label, from 1 in the order of their first coming; it stays as others come.

        One whose last picture was given another label keeps its number, for when it comes back.
        """
        wanted = list(dict.fromkeys(labels))
        known = self._label_numbers()
        if fresh := [label for label in wanted if label not in known]:
            with self._writing():
                for label in fresh:
                    self._db.execute(queries.NUMBER_LABEL, (label,))
                self._db.execute(queries.FORGET_LABELS, (MAX_NUMBERED,))
            known = self._label_numbers()
        return {label: known[label] for label in sorted(wanted, key=lambda one: known[one])}

    # -- suggestions -----------------------------------------------------------------------------------

    def set_suggestions(self, model: str, suggested: Iterable[tuple[SampleId, str, float]]) -> int:
        """Note what the model with this digest says of samples without a label; how many were noted."""
        rows = [(label, min(1.0, max(0.0, p)), model, check_id(sample)) for sample, label, p in suggested]
        query = "UPDATE sample SET suggested = ?, probability = ?, model = ? WHERE id = ? AND label IS NULL"
        with self._writing():
            return sum(self._db.execute(query, row).rowcount for row in rows)

    # -- after a power cut -----------------------------------------------------------------------------

    def reconcile(self) -> int:
        """Remove files without a row, rows without a file and what the caches still hold of deleted pictures.

        Returns how many files and rows were removed. Call it once at the start of the service.
        """
        try:
            with self._writing():
                # The write lock is held, so that no other process is between its file and its row.
                removed = sum(self._reconcile(prefix) for prefix in PREFIXES)
        except OSError as e:
            raise StoreError(
                f"the pictures in {self._pictures.folder} cannot be looked through: "
                f"{e.filename}: {e.strerror}{advice(e)}"
            ) from e
        self.forget_cached()
        if removed:
            log.warning("samples: %d pictures that were cut off by a power failure are removed", removed)
        return removed

    def forget_cached(self) -> int:
        """Remove cached pixels and features of deleted pictures; call it after a training, too.

        A training that was going on when a picture was deleted may have cached it once more.
        """
        if self._cache is None:
            return 0
        return forget_cached(self._cache, [SampleId(i) for (i,) in self._select("SELECT id FROM gone")])

    # -- inside ----------------------------------------------------------------------------------------

    def _label(
        self,
        ids: Sequence[SampleId],
        label: str | None,
        who: str,
        was: Mapping[SampleId, str | None] | None,
    ) -> Labelled | Outdated:
        if len(ids) > self.bounds.max_per_label:
            raise DataError(
                f"{len(ids)} pictures at once, but a label keeps {self.bounds.max_per_label} "
                "(edge.store.max_per_label)"
            )
        now = self._wall()
        evicted: list[tuple[SampleId, str]] = []
        with self._writing():
            self._check_label(label)
            if was is not None and (outdated := self._outdated(was, label)) is not None:
                return outdated
            query = "INSERT INTO labelling (at, who) VALUES (?, ?)"
            step = self._db.execute(query, (now, who[:64])).lastrowid
            changed = 0
            for sample in dict.fromkeys(ids):
                changed += self._db.execute(queries.REMEMBER, (step, check_id(sample), label)).rowcount
            self._db.execute(queries.RELABEL, (label, who[:64] if label else None, label and now, step))
            if changed == 0:
                self._db.execute("DELETE FROM labelling WHERE number = ?", (step,))
            self._db.execute("DELETE FROM labelling WHERE number <= ?", ((step or 0) - MAX_UNDO,))
            if label is not None:
                for victim in self._room().over_label(label):
                    evicted += self._drop([victim], by_owner=False)
        self._unlink(evicted)
        return Labelled(step if changed else None, changed)

    def _outdated(self, was: Mapping[SampleId, str | None], label: str | None) -> Outdated | None:
        gone = tuple(sample for sample in was if self.get(sample) is None)
        others = tuple(one for one in self._others(was) if one.label != label)
        return Outdated(others, gone) if gone or others else None

    def _others(self, was: Mapping[SampleId, str | None]) -> tuple[Sample, ...]:
        """Those whose label is not the one that they were shown with."""
        found = (self.get(sample) for sample in was)
        return tuple(one for one in found if one is not None and one.label != was[one.id])

    def _add_batch(self, batch: list[Incoming]) -> list[Outcome]:
        from apiary_edge.samples.clean import clean

        prepared: list[tuple[Incoming, str, CleanPicture | Duplicate | SampleRefused]] = []
        for one in batch:
            # Decoding is slow: it is done before the write lock is taken, and not for what is known.
            origin = hashlib.sha256(one.data).hexdigest()
            known = self.knows(origin)
            try:
                prepared.append((one, origin, Duplicate(known) if known else clean(one.data)))
            except DataError as e:
                prepared.append((one, origin, SampleRefused(str(e))))
        outcomes: list[Outcome] = []
        evicted: list[tuple[SampleId, str]] = []
        written: list[tuple[SampleId, str]] = []
        with self._writing():
            try:
                for one, origin, picture in prepared:
                    if isinstance(picture, Duplicate):
                        outcomes.append(self._again(one, picture.id))
                    elif isinstance(picture, SampleRefused):
                        outcomes.append(picture)
                    else:
                        sync = len(batch) == 1
                        outcomes.append(self._take(one, origin, picture, written, evicted, sync=sync))
                if len(batch) > 1 and written:
                    self._pictures.sync()
            except BaseException:
                # The rows go with the transaction; their files while the lock is still ours.
                for sample, suffix in written:
                    self._pictures.remove(sample, suffix)
                raise
        self._unlink(evicted)
        return outcomes

    def _take(
        self,
        one: Incoming,
        origin: str,
        picture: CleanPicture,
        written: list[tuple[SampleId, str]],
        evicted: list[tuple[SampleId, str]],
        *,
        sync: bool,
    ) -> Outcome:
        sample = SampleId(hashlib.sha256(picture.data).hexdigest())
        if (known := self.knows(sample)) is not None:
            return self._again(one, known)
        if one.automatic and self._deleted_by_owner(sample, origin):
            return SampleRefused("its owner deleted this picture; import it to have it back")
        try:
            self._check_label(one.label)
        except DataError as e:
            return SampleRefused(str(e))
        victims = self._room().for_newcomer(len(picture.data), one.label)
        if isinstance(victims, SampleRefused):
            return victims
        dropped = self._drop(victims, by_owner=False)
        evicted += dropped
        self._db.execute("DELETE FROM gone WHERE id = ?", (sample,))
        written.append((sample, picture.suffix))
        self._pictures.write(sample, picture.suffix, picture.data, sync=sync)
        now = self._wall()
        self._db.execute(
            queries.INSERT,
            {
                "id": sample,
                "origin": origin,
                "suffix": picture.suffix,
                "bytes": len(picture.data),
                "width": picture.width,
                "height": picture.height,
                "captured_at": now if one.captured_at is None else one.captured_at,
                "source": one.source[:200],
                "likeness": queries.signed(one.likeness),
                "held_out": is_held_out(sample, self.bounds.held_out)
                if one.held_out is None
                else one.held_out,
                "label": one.label,
                "labelled_by": IMPORT if one.label else None,
                "labelled_at": now if one.label else None,
            },
        )
        return Added(sample, tuple(s for s, _ in dropped))

    def _delete(self, ids: Sequence[SampleId], was: Mapping[SampleId, str | None] | None) -> int | Outdated:
        try:
            gone = self._delete_rows(ids, was)
        except StoreError:
            # On a full disk this is how an owner frees room: it must not need any.
            if not self._reserve.release():
                raise
            gone = self._delete_rows(ids, was)
        if not isinstance(gone, Outdated):
            self._unlink(gone)
        self._reserve.keep()
        return gone if isinstance(gone, Outdated) else len(gone)

    def _delete_rows(
        self, ids: Sequence[SampleId], was: Mapping[SampleId, str | None] | None
    ) -> list[tuple[SampleId, str]] | Outdated:
        with self._writing():
            if was is not None and (others := self._others(was)):
                return Outdated(others, ())
            return self._drop(ids, by_owner=True)

    def _drop(self, ids: Sequence[SampleId], *, by_owner: bool) -> list[tuple[SampleId, str]]:
        """Take rows out, inside a transaction; the files that are to be removed after it."""
        gone: list[tuple[SampleId, str]] = []
        for sample in dict.fromkeys(ids):
            row = self._db.execute(
                "DELETE FROM sample WHERE id = ? RETURNING suffix, origin", (check_id(sample),)
            ).fetchone()
            if row is not None:
                gone.append((sample, row[0]))
                self._db.execute(queries.TOMBSTONE, (sample, row[1], by_owner))
                self._db.execute("DELETE FROM change WHERE id = ?", (sample,))
        if gone:
            limit = MAX_DELETED if by_owner else MAX_EVICTED
            self._db.execute(queries.FORGET, (by_owner, limit, by_owner))
        return gone

    def _unlink(self, gone: list[tuple[SampleId, str]]) -> None:
        """Remove files of rows that are gone, unless another process has added the picture again."""
        if gone:
            with self._writing():
                for sample, suffix in gone:
                    if self.knows(sample) is None:
                        self._pictures.remove(sample, suffix)
        if gone and self._cache is not None:
            forget_cached(self._cache, [sample for sample, _ in gone])

    def _reconcile(self, prefix: str) -> int:
        rows = self._db.execute(
            "SELECT id, suffix FROM sample WHERE id BETWEEN ? AND ?", (prefix, f"{prefix}g")
        )
        missing = {f"{sample}.{suffix}": SampleId(sample) for sample, suffix in rows}
        removed = clear_partial(self._pictures.folder / prefix)
        for entry in self._pictures.names(prefix):
            if entry.is_file(follow_symlinks=False) and missing.pop(entry.name, None) is not None:
                continue
            if not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)
                removed += 1
        return removed + len(self._drop(list(missing.values()), by_owner=False))

    def _room(self) -> StoreRoom:
        return StoreRoom(self._db, self.bounds, self.folder)

    def _deleted_by_owner(self, sample: SampleId, origin: str) -> bool:
        query = "SELECT 1 FROM gone WHERE by_owner AND (id = ? OR origin = ?) LIMIT 1"
        return self._db.execute(query, (sample, origin)).fetchone() is not None

    def _again(self, one: Incoming, known: SampleId) -> Outcome:
        """A picture that is there already: its label is taken where there was none yet."""
        try:
            self._check_label(one.label)
        except DataError as e:
            return SampleRefused(str(e))
        if one.label is None:
            return Duplicate(known)
        values = (one.label, IMPORT, self._wall(), known)
        return Duplicate(known, labelled=self._db.execute(queries.LABEL_OPEN, values).rowcount > 0)

    def _check_label(self, label: str | None) -> None:
        if label is None:
            return
        check_label(label)
        known = self.labels()
        if label not in known and len(known) >= MAX_LABELS:
            raise DataError(f"{label!r} would be label {len(known) + 1}, expected at most {MAX_LABELS}")

    def _writing(self) -> Any:
        return schema.writing(self._db, self._file)
