"""Text from elsewhere as a terminal, a log or a page may show it: what controls them is escaped. Pure.

Names of files and texts of peers may hold sequences that clear a screen, retitle a window, turn the order of
characters round, or begin a line that passes for one of ours. Whoever shows such a text uses this module.
"""

import re
from typing import Any, Final

# C0 and C1 controls with DEL, marks that change the direction of what follows, separators of lines and
# paragraphs, the byte order mark, annotations, lone surrogates, and tags (Unicode 15, chapter 23).
_CONTROLS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, *, keep: str = "") -> str:
    r"""`text` with each control character as its escape, but for those in `keep`.

    Example: `printable("a\x1b[2J\n")` gives `a\x1b[2J\n` in ten visible characters.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def printable_values(value: Any) -> Any:
    """The same for every text of a JSON value, its keys included."""
    match value:
        case str():
            return printable(value)
        case dict():
            return {printable_values(k): printable_values(v) for k, v in value.items()}
        case list() | tuple():
            return [printable_values(v) for v in value]
        case _:
            return value


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is no UTF-8 (PEP 383)
        code -= 0xDC00
    named = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(character)
    return named or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
