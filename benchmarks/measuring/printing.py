"""What benchmarks print: progress on standard error, numbers in tables."""

from __future__ import annotations

import sys


def say(what: str) -> None:
    """Show progress."""
    print(what, file=sys.stderr, flush=True)


def number(value: float | None, digits: int = 0) -> str:
    """A table's cell; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"
