"""Which files are samples, and how one is opened within bounds: cheap to import, without Pillow and numpy."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

PICTURES: Final = (".jpg", ".jpeg", ".png")
TEXTS: Final = (".txt",)
"""One short text a file, such as a name."""
MAX_FILE_BYTES: Final = 64 * 2**20
"""A picture file larger than this is not read into memory."""
MAX_PIXELS: Final = 50_000_000
"""Checked on the header, before pixels are decoded; the largest Raspberry Pi camera has 12 million (HQ)."""
MAX_DECODED_PIXELS: Final = 16_000_000
"""Of what is decoded at once, 48 MB: a JPEG comes at a fraction of its size, a PNG only whole, and 150 kB of
one may hold 50 million pixels."""


@contextmanager
def opened_picture(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> Iterator[PillowImage]:
    """A JPEG or PNG whose pixels are not decoded yet; whatever fails within the block is a DataError."""
    from PIL import Image

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            # Pillow warns of bombs and odd EXIF data; our own limit is lower, and orientation is optional.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("JPEG", "PNG")) as picture:
                if picture.width * picture.height > max_pixels:
                    size = f"{picture.width}x{picture.height}"
                    raise DataError(f"{size} pixels, at most {max_pixels // 10**6} million fit")
                yield picture
    except DataError:
        raise
    except Image.DecompressionBombError:  # far past our limit, Pillow does not even open it
        raise DataError(f"far too many pixels, at most {max_pixels // 10**6} million fit") from None
    except MemoryError:
        raise DataError("there is not enough memory to decode it") from None
    except Exception as e:  # Pillow raises anything from SyntaxError to struct.error on torn files
        raise _unreadable(e) from None


def check_decodable(picture: PillowImage) -> None:
    """Raises DataError where the picture, as it would be decoded now, takes too much memory."""
    if picture.width * picture.height > MAX_DECODED_PIXELS:
        raise DataError(
            f"a {picture.format} of {picture.width}x{picture.height} pixels can only be decoded whole, "
            f"at most {MAX_DECODED_PIXELS // 10**6} million fit"
        )


def _unreadable(e: Exception) -> DataError:
    from PIL import UnidentifiedImageError

    # Of a file of another kind Pillow names our object in memory, with its address.
    foreign = isinstance(e, UnidentifiedImageError)
    why = "it does not begin like one" if foreign else str(e)[:100] or type(e).__name__
    return DataError(f"not a readable JPEG or PNG: {why}")
