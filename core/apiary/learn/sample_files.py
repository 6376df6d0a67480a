"""Which files are samples, and why one cannot be read: cheap to import, without Pillow."""

from typing import Final

from apiary.errors import DataError

PICTURES: Final = (".jpg", ".jpeg", ".png")
TEXTS: Final = (".txt",)
"""One short text a file, such as a name."""


def unreadable(e: Exception) -> DataError:
    """What to raise in place of Pillow's own error: anything from SyntaxError to struct.error."""
    from PIL import UnidentifiedImageError

    # Of a file of another kind Pillow names our object in memory, with its address.
    foreign = isinstance(e, UnidentifiedImageError)
    why = "it does not begin like one" if foreign else str(e)[:100] or type(e).__name__
    return DataError(f"not a readable JPEG or PNG: {why}")
