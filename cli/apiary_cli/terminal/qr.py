"""A QR code in a terminal: dark on light whatever the terminal's colours are. Pure."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

BORDER: Final = 2
"""Light modules around the code. The standard asks for 4; readers of phones need 1, and lines are few."""
_BLOCKS: Final = {(False, False): "█", (False, True): "▀", (True, False): "▄", (True, True): " "}
"""By (upper is dark, lower is dark): what is light is drawn."""
_WHITE_ON_BLACK: Final = "\x1b[97;40m"
_LIGHT, _DARK, _PLAIN = "\x1b[107m  ", "\x1b[40m  ", "\x1b[0m"


def drawing(modules: Sequence[Sequence[int]], *, unicode: bool) -> str:
    """The code of modules 1 (dark) and 0: two rows a line by half blocks, or one by blanks (ASCII)."""
    width = len(modules[0]) + 2 * BORDER
    light = [False] * width
    edge = [False] * BORDER
    rows = [light] * BORDER + [edge + [bool(m) for m in row] + edge for row in modules] + [light] * BORDER
    if unicode:
        pairs = zip_longest(rows[::2], rows[1::2], fillvalue=light)
        lines = ("".join(_BLOCKS[pair] for pair in zip(*both, strict=True)) for both in pairs)
        return "\n".join(f"{_WHITE_ON_BLACK}{line}{_PLAIN}" for line in lines)
    return "\n".join("".join(_DARK if m else _LIGHT for m in row) + _PLAIN for row in rows)


def columns(modules: Sequence[Sequence[int]], *, unicode: bool) -> int:
    """How wide `drawing` is."""
    return (len(modules[0]) + 2 * BORDER) * (1 if unicode else 2)
