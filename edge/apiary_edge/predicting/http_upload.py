"""Pictures that somebody posts: the body of a request to a frame, bounded before anything is decoded."""

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.manifest import PictureInput
from apiary.learn.sample_files import opened_picture

MAX_BYTES: Final = 12 * 2**20
MAX_PIXELS: Final = 16_000_000
"""The HQ camera has 12 million. A PNG of so many takes 48 MB while it is decoded, one at a time."""
MAX_SIDE: Final = 640
"""For programs that resize by themselves: frames of a camera are about this large, too."""
_FILE: Final = "file"
_NAME: Final = re.compile(rb'[; ]name="?([^";\r\n]*)"?')
_BOUNDARY: Final = re.compile(r'boundary="?([^";,\s]{1,70})"?')


def picture_of(body: bytes, content_type: str) -> bytes:
    """The picture in a body: the part `file` of multipart/form-data, else all of it. Raises DataError."""
    if not content_type.lower().startswith("multipart/form-data"):
        if not body:
            raise DataError(f"no picture: expected its bytes, or multipart/form-data with a part {_FILE!r}")
        return body
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise DataError("multipart/form-data without a boundary")
    mark = b"--" + found[1].encode()
    at = body.find(mark)
    while at >= 0 and (end := body.find(mark, at + len(mark))) >= 0:
        blank = body.find(b"\r\n\r\n", at, min(end, at + 4096))
        names = _NAME.findall(body[at:blank]) if blank >= 0 else []
        if names and names[0].removesuffix(b"[]") == _FILE.encode():
            return body[blank + 4 : end - 2]
        at = end
    raise DataError(f"multipart/form-data without a part named {_FILE!r}, as in curl -F file=@picture.jpg")


def size_of(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height by the picture's header. Raises DataError where it is none, or too large."""
    with opened_picture(data, max_pixels) as opened:
        return opened.size


def frame_of(
    data: bytes, to: PictureInput, *, whole: bool, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """The picture as uint8[H, W, 3]: of the model's size, or `whole` with its own proportions.

    Raises DataError.
    """
    width, height = size_of(data, max_pixels)
    if whole:
        scale = min(1.0, max(MAX_SIDE, to.width, to.height) / max(width, height))
        size = PictureInput(
            height=max(1, round(height * scale)), width=max(1, round(width * scale)), channels=3
        )
    else:
        size = PictureInput(height=to.height, width=to.width, channels=3)
    try:
        return images.decode(data, size)
    except MemoryError:
        raise DataError("this node has not enough memory to decode it") from None
