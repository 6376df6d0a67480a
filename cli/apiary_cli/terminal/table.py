"""Tables on standard output: cut to the width of a terminal, whole in a pipe, without decoration."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from apiary.printable import printable

if TYPE_CHECKING:
    from rich.console import OverflowMethod
    from rich.table import Table

_WHOLE: Final = 100_000
"""Columns of a pipe: more than any table has."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, fold: bool = False) -> str:
    """The lines of `rows` under a header, if any. A column whose cells are all empty is left out.

    Example: `table(["NODE", "SAMPLES"], [["pi-1", "40"]])` gives `NODE  SAMPLES` above `pi-1       40`.
    `fold`: on a narrow terminal break long cells over lines, rather than cut them.
    """
    from rich.console import Console

    drawn = rich_table(header, rows, fold=fold)
    if not drawn.columns:
        return ""
    console = Console(width=None if sys.stdout.isatty() else _WHOLE, color_system=None)
    with console.capture() as lines:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in lines.get().splitlines())


def rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, fold: bool = False) -> Table:
    """The same for a live display; columns of numbers are set to the right."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(header), header_style="")
    shown = [i for i in range(len(rows[0]) if rows else 0) if any(row[i] for row in rows)]
    for i in shown:
        drawn.add_column(
            header[i] if header else "",
            justify="right" if all(_is_number(row[i]) for row in rows) else "left",
        )
    # The sign for what was cut is none of ASCII's.
    cut: OverflowMethod = "ellipsis" if _is_unicode() else "crop"
    overflow: OverflowMethod = "fold" if fold else cut
    for row in rows:
        # As `Text`: cells come from the network, and markup in them means nothing. Where room is short rich
        # narrows the widest column first, unless a column itself is not to be wrapped.
        drawn.add_row(*(Text(printable(row[i]), no_wrap=not fold, overflow=overflow) for i in shown))
    return drawn


def duration(seconds: float | None) -> str:
    """`47 s`, `12 min`, `5 h`, `3 d`: the largest unit that leaves two digits or so."""
    if seconds is None:
        return ""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600), ("d", 86400)):
        if seconds < {"s": 120, "min": 7200, "h": 172_800}.get(unit, float("inf")):
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError("unreachable")


def share(value: float | None) -> str:
    """`97.5%`, or nothing."""
    return "" if value is None else f"{value:.1%}"


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("-").replace(".", "", 1).rstrip("%").isdigit()
