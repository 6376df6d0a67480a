"""A picture file as a frame."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apiary.errors import DataError
from apiary.learn.sample_files import unreadable
from apiary_edge.samples import MAX_FILE_BYTES, MAX_PIXELS
from apiary_edge.samples.clean import fit_in_memory

if TYPE_CHECKING:
    from apiary_edge.cameras.base import Frame


def read_still(path: Path) -> Frame:
    """A JPEG or PNG file as uint8[H, W, 3], upright. Raises DataError: a link, too large, no picture.

    A JPEG of more than MAX_DECODED_PIXELS comes at half its size.
    """
    from PIL import Image, ImageOps

    data = read_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs: our limit is lower
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise DataError(f"{opened.width}x{opened.height} pixels, at most {MAX_PIXELS} fit")
                fit_in_memory(opened)
                ImageOps.exif_transpose(opened, in_place=True)
                return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))
    except DataError:
        raise
    except MemoryError:
        raise DataError("this node has not enough memory to decode it") from None
    except Exception as e:  # Pillow raises anything from SyntaxError to struct.error on torn files
        raise unreadable(e) from None


def read_file(path: Path) -> bytes:
    """A plain file's bytes; links are not followed. Raises DataError."""
    try:
        # Not blocking: a pipe of that name would keep us waiting for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise DataError(f"cannot be read: {e.strerror}") from None
    with os.fdopen(fd, "rb") as f:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise DataError("it is no file")
        if about.st_size > MAX_FILE_BYTES:
            raise DataError(f"{about.st_size} bytes, expected at most {MAX_FILE_BYTES}")
        try:
            return f.read(about.st_size)  # not more: that much is allocated before a byte is read
        except OSError as e:
            raise DataError(f"cannot be read: {e.strerror}") from None
