"""What controls a terminal is escaped, and nothing else."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiary.printable import printable, printable_values

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pi-7 ist müde: 3 Bilder, 日本, 👩‍🌾", "pi-7 ist müde: 3 Bilder, 日本, 👩‍🌾"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc\x7f\x00", r"a\r\nb\tc\x7f\x00"),
        ("gpj\u202eexe", r"gpj\u202eexe"),
        ("a\u2028b\u2029c\x85", r"a\u2028b\u2029c\x85"),
        ("\ufeffname", r"\ufeffname"),
        ("caf\udce9", r"caf\xe9"),  # the byte of a file's name
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_controls_are_shown_as_their_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_and_tabs_are_kept_where_they_are_ours() -> None:
    assert printable("a\n\tb\r\x1b", keep="\n\t") == "a\n\tb\\r\\x1b"


@given(st.text(st.characters(codec=None, categories=None)))
def test_no_text_keeps_what_controls_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in DIRECTIONS for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert printable(shown) == shown


def test_values_of_json_are_printable_throughout() -> None:
    value = {"a\x1b": ["b\x07", {"c": "\u202e"}, 3, None, True, 1.5]}
    shown = printable_values(value)
    assert shown == {r"a\x1b": [r"b\x07", {"c": r"\u202e"}, 3, None, True, 1.5]}
    assert json.loads(json.dumps(shown)) == shown
