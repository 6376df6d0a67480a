"""A picture file without its metadata: where and when it was taken, by whom, and thumbnails of the uncut one.

Of a JPEG or PNG nothing but the segments and chunks that pixels need is kept, so pixels do not change. What
is turned by EXIF, is of another format, or is put together in a way that only a decoder understands (no end
marker, a trailer behind it) is encoded again, at half its size where a JPEG has more than 16 million pixels.
What training can decode is taken, nothing else. Imports Pillow when it is called.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apiary.errors import DataError
from apiary.learn.sample_files import MAX_DECODED_PIXELS, MAX_FILE_BYTES, check_decodable, opened_picture

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

QUALITY: Final = 95
"""Of a JPEG that had to be turned; 4:4:4, so that turning costs as little as it can."""
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT: Final = frozenset(
    {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT"}
)
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and RSTn have no length (ITU T.81, B.1.1.3)
_ADOBE: Final = 0xEE  # APP14 says how the colours are coded; without it CMYK and RGB JPEGs change their looks
_ORIENTATION: Final = 0x0112
_GREY: Final = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "F"})


@dataclass(frozen=True, slots=True)
class CleanPicture:
    """The bytes to store, `jpg` or `png`, and the size in pixels."""

    data: bytes
    suffix: str
    width: int
    height: int


def clean(data: bytes) -> CleanPicture:
    """`data` upright and without its metadata. Raises DataError: no whole picture, or too large."""
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{len(data)} bytes, expected at most {MAX_FILE_BYTES}")
    with opened_picture(data) as picture:
        kind = "jpg" if picture.format in ("JPEG", "MPO") else "png" if picture.format == "PNG" else None
        if kind != "jpg":
            check_decodable(picture)
        turned = picture.getexif().get(_ORIENTATION, 1) in range(2, 9)
        width, height = picture.size
    if kind is None or turned:
        return _encoded_again(data)
    try:
        stripped = _jpeg(data) if kind == "jpg" else _png(data)
    except DataError:
        return _encoded_again(data)
    # Decode what will be stored, a JPEG at an eighth of its size: a torn file must not be labelled.
    with opened_picture(stripped) as picture:
        picture.draft("L", (1, 1))
        picture.load()
    return CleanPicture(stripped, kind, width, height)


def fit_in_memory(opened: PillowImage) -> None:
    """Have a large JPEG decoded at half its size. Raises DataError for others: they come only whole."""
    if opened.width * opened.height > MAX_DECODED_PIXELS:
        opened.draft(None, (opened.width // 2, opened.height // 2))
    check_decodable(opened)


def _encoded_again(data: bytes) -> CleanPicture:
    """The pixels alone: as JPEG where they were compressed with loss, as PNG where not."""
    from PIL import ImageOps

    from apiary.learn.modes import plain

    with opened_picture(data) as opened:
        lossy = opened.format in ("JPEG", "MPO", "HEIF", "AVIF") or data[12:16] == b"VP8 "
        fit_in_memory(opened)
        upright = ImageOps.exif_transpose(opened)
        if opened.format not in ("JPEG", "MPO", "PNG"):
            upright = plain(upright, 1 if upright.mode in _GREY else 3)
        upright.info = {k: v for k, v in upright.info.items() if k == "transparency"}
        out = io.BytesIO()
        if lossy:
            upright.save(out, "JPEG", quality=QUALITY, subsampling=0)
        else:
            upright.save(out, "PNG")
    width, height = upright.size
    stripped = _jpeg(out.getvalue()) if lossy else _png(out.getvalue())
    return CleanPicture(stripped, "jpg" if lossy else "png", width, height)


def _jpeg(data: bytes) -> bytes:
    """A JPEG's segments without APPn (APP14 excepted) and comments; nothing after its end."""
    if data[:2] != b"\xff\xd8":
        raise DataError("not a readable JPEG: it does not begin like one")
    kept = [b"\xff\xd8"]
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes (B.1.1.2)
            at += 1
        if at + 2 > len(data) or data[at] != 0xFF:
            raise DataError("not a readable JPEG: its segments are torn")
        marker = data[at + 1]
        if marker == 0xD9:
            return b"".join([*kept, b"\xff\xd9"])
        if marker in _STANDALONE:
            kept.append(data[at : at + 2])
            at += 2
            continue
        if at + 4 > len(data):
            raise DataError("not a readable JPEG: it ends early")
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            raise DataError("not a readable JPEG: it ends early")
        if marker == 0xDA:
            end = _scan_end(data, end)
        if not (marker == 0xFE or 0xE0 <= marker <= 0xEF) or marker == _ADOBE:
            kept.append(data[at:end])
        at = end


def _scan_end(data: bytes, at: int) -> int:
    """Where the coded data of a scan ends: at the next marker that is neither stuffing nor a restart."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise DataError("not a readable JPEG: it ends early")
        following = data[at + 1]
        if following == 0xFF:
            at += 1
        elif following == 0 or following in _STANDALONE:
            at += 2
        else:
            return at


def _png(data: bytes) -> bytes:
    """A PNG's chunks that pixels need, checksums verified; nothing after its end."""
    if data[:8] != _PNG_MAGIC:
        raise DataError("not a readable PNG: it does not begin like one")
    kept = [_PNG_MAGIC]
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind in _PNG_KEPT:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise DataError("not a readable PNG: a checksum does not hold")
            kept.append(data[at:end])
        elif not kind[0] & 0x20:
            raise DataError(f"not a readable PNG: critical chunk {kind!r} is none of the standard's")
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    raise DataError("not a readable PNG: it ends early")
