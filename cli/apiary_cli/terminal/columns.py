"""Tables on a terminal or in a pipe: columns as wide as their widest cell, nothing drawn around. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines under a header; a column whose cells are all empty is left out. Numbers are set to the right."""
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    widths = {i: max(len(header[i]), *(len(row[i]) for row in rows)) for i in shown}
    right = {i for i in shown if all(_is_number(row[i]) for row in rows)}

    def line(cells: Sequence[str]) -> str:
        padded = (cells[i].rjust(widths[i]) if i in right else cells[i].ljust(widths[i]) for i in shown)
        return "  ".join(padded).rstrip()

    return "\n".join(line(cells) for cells in (header, *rows))


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


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("-").replace(".", "", 1).rstrip("%").isdigit()
