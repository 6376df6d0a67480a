"""A short text as uint8[letters, alphabet, 1]: one row a letter, 255 at its place in the alphabet."""

import unicodedata
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError
from apiary.learn.manifest import PictureInput

MAX_TEXT_BYTES: Final = 4096


def decode(data: bytes, to: PictureInput) -> NDArray[np.uint8]:
    """The rows of a UTF-8 text, its last `to.height` letters at the end, nothing before them.

    Accents are dropped, letters come in lower case, what is not in `to.letters` is left out: "Ślusàrski" and
    "slusarski" are the same. Raises DataError.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise DataError(f"{len(data)} bytes, expected a text of at most {MAX_TEXT_BYTES}")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text") from None
    letters = [c for c in plain(text) if c in to.letters][-to.height :]
    if not letters:
        raise DataError("holds none of the letters that the model reads")
    rows = np.zeros((to.height, to.width, 1), np.uint8)
    # At the end: the network reads the last letter last, however long the text is.
    places = [to.letters.index(c) for c in letters]
    rows[range(to.height - len(letters), to.height), places, 0] = 255
    return rows


def plain(text: str) -> str:
    """In lower case, accents dropped, line ends and doubled spaces as one space."""
    # Letters that are not a plain letter with an accent, so that decomposing does not reach them.
    text = text.translate({ord("ł"): "l", ord("Ł"): "l", ord("ø"): "o", ord("Ø"): "o", ord("ß"): "ss"})
    apart = unicodedata.normalize("NFKD", text)
    return " ".join("".join(c for c in apart if not unicodedata.combining(c)).lower().split())
