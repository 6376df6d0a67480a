"""How a picture file is opened, within bounds: cheap to import, without Pillow and numpy."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apiary.errors import DataError
from apiary.learn.folder import walk
from apiary.learn.folder.kinds import kind_of_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_FILE_BYTES: Final = 64 * 2**20
"""A picture file larger than this is not read into memory."""
MAX_PIXELS: Final = 50_000_000
"""Checked on the header, before pixels are decoded; the largest Raspberry Pi camera has 12 million (HQ)."""
MAX_DECODED_PIXELS: Final = 16_000_000
"""Of what is decoded at once, 48 MB: a JPEG comes at a fraction of its size, a PNG only whole, and 150 kB of
one may hold 50 million pixels."""


@contextmanager
def opened_picture(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> Iterator[PillowImage]:
    """A picture, the first of several, not decoded yet; whatever fails within the block is a DataError."""
    from PIL import Image

    formats = _formats()
    try:
        with warnings.catch_warnings():
            # Pillow warns of bombs and odd EXIF data; our own limit is lower, and orientation is optional.
            warnings.simplefilter("ignore")
            file = io.BytesIO(_ended(source)) if isinstance(source, bytes) else source
            with Image.open(file, formats=formats) as picture:
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
        raise _unreadable(e, source) from None


def check_decodable(picture: PillowImage) -> None:
    """Raises DataError where the picture, as it would be decoded now, takes too much memory."""
    if picture.width * picture.height > MAX_DECODED_PIXELS:
        raise DataError(
            f"a {picture.format} of {picture.width}x{picture.height} pixels can only be decoded whole, "
            f"at most {MAX_DECODED_PIXELS // 10**6} million fit"
        )


def _ended(data: bytes) -> bytes:
    """A JPEG that lacks nothing but its end marker with one, without what precedes it; others as they are.

    Whether coded data is missing shows in the pixels: what follows the data's end leaves them alone only
    where the decoder had no need of it.
    """
    if data[:1] in (b"\r", b"\n") and data.lstrip(b"\r\n")[:2] == b"\xff\xd8":
        data = data.lstrip(b"\r\n")  # some cameras and scripts put a line end before it
    if data[:2] != b"\xff\xd8" or data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"):
        return data
    seen = {_pixels(data + filler * 64 + b"\xff\xd9") for filler in (b"\0", b"\x5a")}
    return data + b"\xff\xd9" if len(seen) == 1 and None not in seen else data


def _pixels(data: bytes) -> int | None:
    """A checksum of a JPEG's grey pixels, None where it cannot be decoded, or is too large."""
    import zlib

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            if picture.width * picture.height > MAX_DECODED_PIXELS:
                return None
            picture.draft("L", picture.size)
            return zlib.crc32(picture.tobytes())
    except Exception:  # Pillow raises anything on torn files; whoever opens it next says so
        return None


def _formats() -> tuple[str, ...]:
    """Pillow's names of what is read. Their modules are imported one by one: all of Pillow's take 9 MB."""
    from PIL import TiffImagePlugin, WebPImagePlugin  # noqa: F401 - they register their formats

    more: tuple[str, ...] = ()
    if walk.reads_avif():
        from PIL import AvifImagePlugin  # noqa: F401 - as above

        more = ("AVIF",)
    if walk.reads_heic():
        from pillow_heif import register_heif_opener

        register_heif_opener()
        more = (*more, "HEIF")
    return (*_FORMATS, *more)


def _unreadable(e: Exception, source: bytes | Path) -> DataError:
    from PIL import UnidentifiedImageError

    # Of a file of another kind Pillow names our object in memory, with its address.
    if isinstance(e, UnidentifiedImageError):
        why = kind_of_bytes(_head(source)) or "it does not begin like one"
        if (why.startswith("it is HEIC") and walk.reads_heic()) or (
            why.startswith("it is AVIF") and walk.reads_avif()
        ):
            why = f"{why[:10]}, but not whole"
    else:
        why = str(e)[:100] or type(e).__name__
    return DataError(f"not a readable picture: {why}")


def _head(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source[:64]
    try:
        with source.open("rb") as f:
            return f.read(64)
    except OSError:
        return b"?"
