"""A picture file as a frame."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apiary.errors import DataError
from apiary.learn.modes import plain
from apiary.learn.sample_files import MAX_FILE_BYTES, opened_picture
from apiary_edge.samples.clean import fit_in_memory

if TYPE_CHECKING:
    from apiary_edge.cameras.base import Frame


def read_still(path: Path) -> Frame:
    """A picture file as uint8[H, W, 3], upright. Raises DataError: a link, too large, no picture.

    A JPEG of more than MAX_DECODED_PIXELS comes at half its size.
    """
    from PIL import ImageOps

    with opened_picture(read_file(path)) as opened:
        fit_in_memory(opened)
        ImageOps.exif_transpose(opened, in_place=True)
        return np.asarray(plain(opened, 3))


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
