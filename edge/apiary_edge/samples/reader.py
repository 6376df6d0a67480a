"""Looking into the sample store; nothing here changes it."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from apiary.errors import StoreError
from apiary_edge.samples import queries, schema
from apiary_edge.samples.layout import Pictures
from apiary_edge.samples.model import (
    MAX_PAGE,
    Filter,
    Order,
    Page,
    Sample,
    SampleCounts,
    SampleId,
    Step,
    TrainingSample,
    check_id,
)

MAX_AWAITING: Final = 1024
"""Samples returned at once of those that wait for a suggestion."""


class SampleReader:
    """What is in a store. Methods raise StoreError for the disk."""

    def __init__(self, folder: Path):
        self._file = folder / "samples.sqlite"
        self._pictures = Pictures(folder / "pictures")
        self._db = schema.connect(self._file)

    def close(self) -> None:
        """Close the index."""
        self._db.close()

    def get(self, sample: SampleId) -> Sample | None:
        """One sample, None where there is none."""
        rows = self._select(queries.GET, (check_id(sample),))
        return queries.sample(rows[0]) if rows else None

    def path(self, sample: SampleId) -> Path | None:
        """The picture file of a sample, None where there is none. Raises DataError for what is no id."""
        rows = self._select("SELECT suffix FROM sample WHERE id = ?", (check_id(sample),))
        return self._pictures.path(sample, rows[0][0]) if rows else None

    def knows(self, digest: str) -> SampleId | None:
        """The sample made of a file with this sha256, before or after its metadata was taken out."""
        query = "SELECT id FROM sample WHERE id = ? UNION ALL SELECT id FROM sample WHERE origin = ? LIMIT 1"
        rows = self._select(query, (digest, digest))
        return SampleId(rows[0][0]) if rows else None

    def origin(self, sample: str) -> str | None:
        """The sha256 of the file that a sample was made of; None for what is no sample."""
        rows = self._select("SELECT origin FROM sample WHERE id = ?", (sample,))
        return str(rows[0][0]) if rows else None

    def find(self, beginning: str) -> list[SampleId]:
        """At most two samples whose ids begin like this: one is the one that is meant."""
        if not beginning or set(beginning) - set("0123456789abcdef"):
            return []
        query = "SELECT id FROM sample WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 2"
        return [SampleId(i) for (i,) in self._select(query, (beginning, f"{beginning}g"))]

    def labels(self) -> list[str]:
        """Every label that a sample has, sorted."""
        return [label for (label,) in self._select("SELECT label FROM tally ORDER BY label")]

    def latest_step(self) -> Step | None:
        """The labelling that `undo` would take back, None where there is none."""
        rows = self._select(queries.LATEST_STEP)
        return Step(*rows[0]) if rows else None

    def awaiting_suggestion(self, model: str, limit: int) -> list[SampleId]:
        """Samples without a label that this model has not seen, newest first."""
        query = "SELECT id FROM sample WHERE label IS NULL AND model IS NOT ? ORDER BY number DESC LIMIT ?"
        return [SampleId(i) for (i,) in self._select(query, (model, min(limit, MAX_AWAITING)))]

    def page(
        self, which: Filter | None = None, order: Order = Order.NEWEST, *, limit: int = 50, offset: int = 0
    ) -> Page:
        """A part of the samples that `which` lets through; `limit` is at most MAX_PAGE."""
        where, values = queries.where(which or Filter())
        (total,) = self._select(queries.count(where), values)[0]
        limit, offset = max(0, min(limit, MAX_PAGE)), max(0, min(offset, 2**40))
        rows = self._select(queries.page(where, order), (*values, limit, offset))
        return Page(tuple(queries.sample(row) for row in rows), total, offset)

    def counts(self) -> SampleCounts:
        """How many samples there are, by label and state."""
        labelled: dict[str, int] = {}
        held_out: dict[str, int] = {}
        for label, held, n in self._select(queries.COUNT_LABELS):
            labelled[label] = labelled.get(label, 0) + n
            if held:
                held_out[label] = n
        suggested = dict(self._select(queries.COUNT_SUGGESTED))
        unlabelled = suggested.pop(None, 0)
        total, size = self._select("SELECT count, bytes FROM total")[0]
        return SampleCounts(labelled, held_out, suggested, unlabelled, total, size)

    def version(self) -> int:
        """Another number whenever another process has changed the index; costs no more than a look."""
        (number,) = self._select("PRAGMA data_version")[0]
        return int(number)

    def recent_likeness(self, limit: int) -> list[int]:
        """Perceptual hashes (unsigned, 64 bit) of the newest captured samples, newest first."""
        query = "SELECT likeness FROM sample WHERE likeness IS NOT NULL ORDER BY number DESC LIMIT ?"
        return [value & 0xFFFF_FFFF_FFFF_FFFF for (value,) in self._select(query, (limit,))]

    def training(self) -> list[TrainingSample]:
        """What may be trained: labelled and not held out, sorted by label and id."""
        return self._labelled(held_out=False)

    def held_out(self) -> list[TrainingSample]:
        """What is never trained and can test a model: labelled and held out, sorted by label and id."""
        return self._labelled(held_out=True)

    def _label_numbers(self) -> dict[str, int]:
        return dict(self._select("SELECT label, number FROM label_number"))

    def _labelled(self, *, held_out: bool) -> list[TrainingSample]:
        rows = self._select(queries.TRAINING, (held_out,))
        return [
            TrainingSample(str(self._pictures.path(SampleId(i), suffix)), label, SampleId(i), size)
            for i, suffix, label, size in rows
        ]

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as e:
            raise StoreError(f"the sample index {self._file} cannot be read: {e}") from e
