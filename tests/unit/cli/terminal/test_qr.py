"""A QR code drawn in a terminal, in half blocks or in ASCII, read back module by module."""

from __future__ import annotations

import segno

from apiary_cli.terminal.qr import BORDER, columns, drawing

LINK = "http://pi-1.local:4912/#code=" + "a" * 40


def modules() -> list[list[int]]:
    return [list(row) for row in segno.make(LINK, error="l", micro=False).matrix]


def without_border(rows: list[list[int]], height: int) -> list[list[int]]:
    return [row[BORDER:-BORDER] for row in rows[BORDER : BORDER + height]]


def test_half_blocks_show_every_module_and_a_light_border() -> None:
    code = modules()
    rows: list[list[int]] = []
    for line in drawing(code, unicode=True).split("\n"):
        assert line.startswith("\x1b[97;40m") and line.endswith("\x1b[0m"), "its colours are fixed"
        signs = line.removeprefix("\x1b[97;40m").removesuffix("\x1b[0m")
        assert len(signs) == columns(code, unicode=True)
        rows.append([int(s in " ▄") for s in signs])
        rows.append([int(s in " ▀") for s in signs])
    assert without_border(rows, len(code)) == code
    assert not any(rows[0] + rows[1] + rows[-1]) and not any(row[0] or row[-1] for row in rows)


def test_a_terminal_without_utf_8_gets_blanks_and_colours_in_ascii() -> None:
    code = modules()
    drawn = drawing(code, unicode=False)
    assert drawn.isascii()
    rows = [[int(cell == "40m  ") for cell in line.split("\x1b[")[1:-1]]
            for line in drawn.split("\n")]  # fmt: skip
    assert {2 * len(row) for row in rows} == {columns(code, unicode=False)}
    assert without_border(rows, len(code)) == code


def test_the_code_of_a_usual_address_fits_an_ordinary_terminal() -> None:
    assert columns(modules(), unicode=True) <= 80 and len(modules()) // 2 + BORDER <= 24
