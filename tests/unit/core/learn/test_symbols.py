"""Symbols on one picture: found, put together, cut out, read in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.symbols import MARGIN, MAX_SYMBOLS, Box, cut, find


def paper(height: int = 100, width: int = 300, ground: int = 250) -> NDArray[Any]:
    return np.full((height, width), ground, np.uint8)


def ink(picture: NDArray[Any], left: int, top: int, width: int, height: int, *, value: int = 10) -> Box:
    picture[top : top + height, left : left + width] = value
    return Box(left, top, width, height)


def test_symbols_come_from_left_to_right_and_line_by_line() -> None:
    picture = paper(200)
    second = ink(picture, 10, 120, 20, 40)
    right = ink(picture, 120, 20, 30, 40)
    # A little higher than its neighbour, and still of the same line.
    left = ink(picture, 40, 10, 30, 40)
    assert find(picture) == [left, right, second]


def test_parts_above_each_other_are_one_symbol() -> None:
    picture = paper()
    ink(picture, 20, 30, 40, 6)
    ink(picture, 20, 46, 40, 6)
    bar = ink(picture, 120, 10, 10, 60)
    assert find(picture) == [Box(20, 30, 40, 22), bar]


def test_lines_below_each_other_are_not() -> None:
    picture = paper(200)
    above, below = ink(picture, 20, 10, 20, 40), ink(picture, 20, 110, 20, 40)
    assert find(picture) == [above, below]


def test_light_on_dark_and_colour_are_the_same() -> None:
    picture = paper(ground=5)
    box = ink(picture, 50, 20, 30, 50, value=240)
    assert find(picture) == [box]
    assert find(np.stack([picture] * 3, axis=-1)) == [box]


def test_dust_and_an_empty_page_are_nothing() -> None:
    picture = paper()
    ink(picture, 200, 80, 2, 2)
    assert find(picture) == []
    assert find(paper()) == []


def test_too_many_spots_are_no_symbols() -> None:
    picture = paper(800, 800)
    for down in range(16):
        for right in range(16):
            picture[down::24, right::24] = 0
    with pytest.raises(DataError, match=f"at most {MAX_SYMBOLS}"):
        find(picture)


def test_a_symbol_is_cut_out_square_with_the_ground_around() -> None:
    picture = paper()
    box = ink(picture, 50, 20, 20, 50)
    square = cut(picture, box)
    side = round(50 * (1 + 2 * MARGIN))
    assert square.shape == (side, side)
    assert square[0, 0] == 250
    assert (square == 10).sum() == 20 * 50
    colour = cut(np.stack([picture] * 3, axis=-1), box)
    assert colour.shape == (side, side, 3)
