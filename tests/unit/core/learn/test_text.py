"""Short texts as rows of letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.manifest import LETTERS, PictureInput
from apiary.learn.text import MAX_TEXT_BYTES, decode, plain

TO = PictureInput(height=5, width=len(LETTERS), channels=1, letters=LETTERS)


def said(rows: NDArray[Any]) -> str:
    """The text that the rows stand for, a dot for an empty one."""
    return "".join(LETTERS[row.argmax()] if row.any() else "." for row in rows[..., 0])


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("Rossi", "rossi"),
        ("Li", "...li"),
        ("Kowalski", "alski"),
        ("Ślusàrski", "arski"),
        ("Łoś", "..los"),
        ("Nuñez\n", "nunez"),
        ("O'Neil", "'neil"),
        ("a\t b", "..a b"),
        ("a1b2", "...ab"),
    ],
)
def test_letters_come_plain_and_at_the_end(text: str, letters: str) -> None:
    rows = decode(text.encode(), TO)
    assert rows.shape == (5, len(LETTERS), 1)
    assert rows.dtype == np.uint8
    assert set(np.unique(rows)) <= {0, 255}
    assert said(rows) == letters.rjust(5, ".")


def test_every_letter_has_a_place_of_its_own() -> None:
    wide = TO.model_copy(update={"height": 40})
    assert said(decode(LETTERS.replace(" ", "x").encode(), wide)).endswith(LETTERS.replace(" ", "x"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "none of the letters"),
        (b"123 \n", "none of the letters"),
        ("漢".encode(), "none of the letters"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a" * (MAX_TEXT_BYTES + 1), "at most 4096"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=why):
        decode(data, TO)


def test_the_longest_text_is_taken() -> None:
    assert said(decode(b"b" * MAX_TEXT_BYTES, TO)) == "bbbbb"


def test_plain_text() -> None:
    assert plain("  Großmann-Ø  ") == "grossmann-o"


def test_a_folder_of_texts_is_scanned_as_texts_and_a_note_beside_pictures_is_none(tmp_path: Path) -> None:
    for label in ("Polish", "Italian"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.txt").write_text("abc")
    assert images.scan(tmp_path).counts == {"Italian": 1, "Polish": 1}
    assert images.scan(tmp_path, ["Polish"], TO).counts == {"Polish": 1}
    with pytest.raises(DataError, match="no picture"):
        images.scan(tmp_path, ["Polish"], PictureInput(height=8, width=8, channels=1))
    data = images.load(images.scan(tmp_path, None, TO), TO)
    assert [said(x) for x in data.x] == ["..abc", "..abc"]
