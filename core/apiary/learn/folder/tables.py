"""Labels that lie in a file beside the pictures: CSV tables, Edge Impulse's info.labels, labels.txt. Pure."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from apiary.errors import DataError
from apiary.learn.folder.splits import Split, split_of

LABEL_COLUMNS: Final = (
    "label", "labels", "class", "class_name", "classname", "class_label", "category", "target", "emotion",
    "diagnosis", "breed", "species", "variety", "type", "name_of_class",
)  # fmt: skip
SPLIT_COLUMNS: Final = ("usage", "split", "set", "subset", "partition", "data set", "dataset", "fold_name")
PIXELS: Final = "pixels"
_PIXEL: Final = re.compile(r"pixel[ _]?\d+|\d+x\d+")
_MOST_PIXEL_COLUMNS: Final = 4
"""A table with more columns that are named like pixels holds pictures."""
_TRIED_ROWS: Final = 200
_NUMBERED: Final = re.compile(r"(\d+)[ :\t]\s*(.+)")


@dataclass(frozen=True, slots=True)
class FileLabel:
    """What a table says of a picture; `label` None: that it has none. `split` None: it does not say."""

    label: str | None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class FileLabels:
    """Labels by path, as indices say it, and in words where they come from."""

    by_path: Mapping[str, FileLabel]
    understood: str
    table: str
    contradicted: int = 0
    """Pictures with several labels, which have none here."""


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file: its columns and rows."""

    name: str
    columns: tuple[str, ...]
    """In lower case; `header` has them as they are written."""
    rows: tuple[tuple[str, ...], ...]
    header: tuple[str, ...]


def decoded(data: bytes) -> str:
    """A table's text: UTF-8, or UTF-16 where it begins with its mark, as Excel's "Unicode text" does."""
    return data.decode(encoding_of(data), "surrogateescape")


def encoding_of(head: bytes) -> str:
    """The encoding of a file that begins like this."""
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def delimiter_of(header: str) -> str:
    """What stands between the columns of a table with this first line."""
    return max(",;\t|", key=header.count)


def header_of(text: str) -> list[str]:
    """A table's columns, in lower case."""
    first = text.removeprefix("\ufeff").partition("\n")[0]
    return [cell.strip().strip('"').lower() for cell in first.split(delimiter_of(first))]


def pixel_columns(columns: Sequence[str]) -> list[int]:
    """Where the pixels are: one column with all, as FER2013's, or one for each, as MNIST's; empty without."""
    if PIXELS in columns:
        return [columns.index(PIXELS)]
    found = [i for i, column in enumerate(columns) if _PIXEL.fullmatch(column)]
    return found if len(found) > _MOST_PIXEL_COLUMNS else []


def has_pixels(columns: Sequence[str]) -> bool:
    """Whether the pictures themselves are in a table with these columns."""
    return bool(pixel_columns(columns))


def read_table(name: str, text: str) -> Table | None:
    """A CSV's columns, in lower case, and its rows; None where it has no header and row. Never raises."""
    text = text.removeprefix("\ufeff")
    delimiter = delimiter_of(text.partition("\n")[0])
    try:
        read = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        rows = [tuple(cell.strip() for cell in row) for row in read]
    except csv.Error:
        return None
    rows = [row for row in rows if any(row)]
    if len(rows) < 2:
        return None
    columns = tuple(cell.lower() for cell in rows[0])
    return Table(name, columns, tuple(row for row in rows[1:] if len(row) == len(columns)), rows[0])


def labels_of_table(table: Table, paths: Sequence[str]) -> FileLabels | None:
    """What a table says of these pictures, given relative to its folder; None where it is not about them.

    Raises DataError where it is, but no column is surely the label.
    """
    index = _index(paths)
    named = _picture_column(table, index)
    if named is None:
        return None
    if _found(index, table.header[named]) is not None:  # the first row is a picture's, and no header
        columns = tuple(f"column {i + 1}" for i in range(len(table.columns)))
        table = replace(table, columns=columns, header=columns, rows=(table.header, *table.rows))
    column, hot = _label_column(table, named)
    split_column = next((i for i, c in enumerate(table.columns) if c in SPLIT_COLUMNS and i != column), None)
    found: dict[str, FileLabel] = {}
    contradicted: set[str] = set()
    for row in table.rows:
        path = _found(index, row[named])
        label = _hot(table, row, hot) if hot else row[column]
        if path is None or not label:
            continue
        split = split_of(row[split_column]) if split_column is not None else None
        if path in found and found[path].label != label:
            contradicted.add(path)
        found[path] = FileLabel(label, split)
    for path in contradicted:
        found[path] = FileLabel(None)
    what = "columns with 0 and 1" if hot else f"column {table.columns[column]!r}"
    return FileLabels(found, f"labels come from {table.name}, {what}", table.name, len(contradicted))


def labels_of_info(text: str, paths: Sequence[str]) -> FileLabels:
    """What an info.labels says of these pictures, given relative to its folder. Raises DataError.

    A label is {"type": "label", "label": "x"} or just "x"; a path is relative to the file or a name alone.
    """
    try:
        files = json.loads(text)["files"]
        rows = [(str(f["path"]), str(f.get("name", "")), _label_of_info(f), f.get("category")) for f in files]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise DataError(
            f"info.labels is not as Edge Impulse writes it: {str(e)[:80] or type(e).__name__}"
        ) from None
    index = _index(paths)
    found: dict[str, FileLabel] = {}
    for path, name, label, category in rows:
        at = next(
            (index[p] for p in (path.removeprefix("./"), path.rpartition("/")[2], name) if p in index), None
        )
        if at is not None:
            found[at] = FileLabel(label, split_of(str(category)) if category else None)
    return FileLabels(found, "labels come from info.labels (Edge Impulse)", "info.labels")


def class_names(text: str) -> list[str]:
    """The lines of a labels.txt, in order, without the numbers that Teachable Machine puts before them."""
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    lines = [line for line in lines if line]
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if lines and all(m is not None and int(m[1]) == i for i, m in enumerate(numbered)):
        return [m[2].strip() for m in numbered if m is not None]
    return lines


def _label_of_info(file: Mapping[str, Any]) -> str | None:
    label = file.get("label")
    if isinstance(label, str):
        return label or None
    if isinstance(label, Mapping) and label.get("type", "label") == "label" and label.get("label"):
        return str(label["label"])
    return None


def _index(paths: Iterable[str]) -> dict[str, str]:
    """Whatever names one picture alone: its path, its name, its name without a suffix."""
    index: dict[str, str | None] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        for word in {path, name, path.rpartition(".")[0], name.rpartition(".")[0]}:
            index[word] = path if word not in index else None
    index.update({path: path for path in paths})
    return {word: path for word, path in index.items() if path is not None}


def _found(index: Mapping[str, str], cell: str) -> str | None:
    """The picture that a cell names: by its path as it is here, or by the end of the path that it had."""
    word = cell.replace("\\", "/")
    while word:
        if (path := index.get(word)) is not None:
            return path
        word = word.partition("/")[2]
    return None


def _picture_column(table: Table, index: Mapping[str, str]) -> int | None:
    tried = table.rows[:_TRIED_ROWS]
    hits = [sum(_found(index, row[i]) is not None for row in tried) for i in range(len(table.columns))]
    best = max(range(len(hits)), key=lambda i: hits[i], default=None)
    return best if best is not None and 2 * hits[best] >= len(tried) > 0 else None


def _label_column(table: Table, named: int) -> tuple[int, list[int]]:
    """The column with the label; or the columns of which one has a 1."""
    others = [i for i in range(len(table.columns)) if i != named]
    for wanted in LABEL_COLUMNS:
        if (at := next((i for i in others if table.columns[i] == wanted), None)) is not None:
            return at, []
    left = [i for i in others if table.columns[i] not in SPLIT_COLUMNS and table.columns[i]]
    if len(left) == 1:
        return left[0], []
    if len(left) > 1 and all(
        sorted(_bit(row[i]) for i in left)[-2:] == ["0", "1"] for row in table.rows[:_TRIED_ROWS]
    ):
        return left[0], left
    raise DataError(
        f"{table.name}: which column is the label? It has {', '.join(table.columns)}; name one of them label"
    )


def _hot(table: Table, row: Sequence[str], columns: Sequence[int]) -> str:
    return next((table.header[i] for i in columns if _bit(row[i]) == "1"), "")


def _bit(cell: str) -> str:
    """`1.0` as `1`, as ISIC's GroundTruth.csv has it."""
    return cell.removesuffix(".0")
