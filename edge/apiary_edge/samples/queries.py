"""The store's SQL that is longer than a line, and rows to samples. Every value is bound, never pasted."""

from typing import Any, Final

from apiary_edge.samples.model import Filter, Order, Sample, SampleId, SampleState, Suggestion

# In the order of Sample's fields, a suggestion's three in its place.
COLUMNS: Final = (
    "id, number, label, suggested, probability, model, held_out, captured_at, source, bytes, width, height,"
    " labelled_by, labelled_at"
)

INSERT: Final = """
INSERT INTO sample (id, origin, suffix, bytes, width, height, captured_at, source, likeness, held_out, label,
    labelled_by, labelled_at)
VALUES (:id, :origin, :suffix, :bytes, :width, :height, :captured_at, :source, :likeness, :held_out, :label,
    :labelled_by, :labelled_at)"""

TOMBSTONE: Final = "INSERT OR REPLACE INTO gone (id, origin, by_owner) VALUES (?, ?, ?)"

# A labelling remembers what each sample was before, for those only that it changes.
REMEMBER: Final = """
INSERT INTO change (labelling, id, label, labelled_by, labelled_at)
SELECT ?, id, label, labelled_by, labelled_at FROM sample WHERE id = ? AND label IS NOT ?"""

RELABEL: Final = """
UPDATE sample SET label = ?, labelled_by = ?, labelled_at = ?
WHERE id IN (SELECT id FROM change WHERE labelling = ?)"""

CHANGED: Final = "SELECT id FROM change WHERE labelling = ?"

RESTORE: Final = """
UPDATE sample SET label = c.label, labelled_by = c.labelled_by, labelled_at = c.labelled_at
FROM change AS c WHERE c.labelling = ? AND c.id = sample.id"""

COUNT_LABELS: Final = """
SELECT label, held_out, COUNT(*) FROM sample WHERE label IS NOT NULL
GROUP BY label, held_out ORDER BY label"""

COUNT_SUGGESTED: Final = "SELECT suggested, COUNT(*) FROM sample WHERE label IS NULL GROUP BY suggested"

TRAINING: Final = """
SELECT id, suffix, label, bytes FROM sample WHERE label IS NOT NULL AND held_out = ? ORDER BY label, id"""

ORDERS: Final = {
    Order.NEWEST: "number DESC",
    Order.OLDEST: "number",
    # Then what no model has seen yet; ties by age, so that pages do not shift.
    Order.UNCERTAIN: "label IS NOT NULL, probability IS NULL, probability, number DESC",
}


STATES: Final = {
    SampleState.LABELLED: "label IS NOT NULL",
    SampleState.SUGGESTED: "label IS NULL AND suggested IS NOT NULL",
    SampleState.UNLABELLED: "label IS NULL AND suggested IS NULL",
}

LABEL_OPEN: Final = """
UPDATE sample SET label = ?, labelled_by = ?, labelled_at = ? WHERE id = ? AND label IS NULL"""

FORGET: Final = """
DELETE FROM gone WHERE number NOT IN
    (SELECT number FROM gone WHERE by_owner = ? ORDER BY number DESC LIMIT ?) AND by_owner = ?"""

NUMBER_LABEL: Final = """
INSERT INTO label_number (label, number) SELECT ?, COALESCE(MAX(number), 0) + 1 FROM label_number WHERE true
ON CONFLICT DO NOTHING"""

FORGET_LABELS: Final = """
DELETE FROM label_number WHERE number <= (SELECT MAX(number) FROM label_number) - ?
AND label NOT IN (SELECT label FROM tally)"""

LATEST_STEP: Final = """
SELECT number, who, (SELECT COUNT(*) FROM change WHERE labelling = number)
FROM labelling ORDER BY number DESC LIMIT 1"""

# Only this module's own text is pasted into the queries below.
GET: Final = f"SELECT {COLUMNS} FROM sample WHERE id = ?"  # noqa: S608 - see above


def count(where: str) -> str:
    """How many rows a condition of `where` finds."""
    return f"SELECT COUNT(*) FROM sample{where}"  # noqa: S608 - see above


def page(where: str, order: Order) -> str:
    """A part of the rows that it finds; LIMIT and OFFSET are bound."""
    return f"SELECT {COLUMNS} FROM sample{where} ORDER BY {ORDERS[order]} LIMIT ? OFFSET ?"  # noqa: S608


def where(which: Filter) -> tuple[str, tuple[Any, ...]]:
    """The condition of a filter, and its values."""
    parts: list[str] = []
    values: list[Any] = []
    if which.state is not None:
        parts.append(STATES[which.state])
    if which.labelled is not None:
        parts.append("label IS NOT NULL" if which.labelled else "label IS NULL")
    if which.label is not None:
        parts.append("COALESCE(label, suggested) = ?")
        values.append(which.label)
    if which.held_out is not None:
        parts.append("held_out = ?")
        values.append(which.held_out)
    return (f" WHERE {' AND '.join(parts)}" if parts else ""), tuple(values)


def sample(row: tuple[Any, ...]) -> Sample:
    """A row of COLUMNS."""
    id_, number, label, suggested, probability, model, held_out, *rest = row
    suggestion = Suggestion(suggested, probability, model) if suggested is not None else None
    return Sample(SampleId(id_), number, label, suggestion, bool(held_out), *rest)


def signed(likeness: int | None) -> int | None:
    """A 64 bit hash as SQLite's signed integer."""
    if likeness is None:
        return None
    return likeness - 2**64 if likeness >= 2**63 else likeness
