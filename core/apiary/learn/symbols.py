"""Separate symbols on one picture, such as a handwritten formula: found by contours, cut out as squares.

As the handwritten maths recognisers do: ink against ground by Otsu's threshold (1979), the outer contours of
what is connected, parts above each other (of an i, of an equals sign) taken together, in reading order.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError

MAX_SYMBOLS: Final = 1000
MARGIN: Final = 0.1
"""Ground left around a symbol on each side, as a share of its larger side; it should be as in training."""
SMALLEST: Final = 0.02
"""Specks whose larger side is below this share of the picture's are dust."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Box:
    """Where a symbol lies, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column past it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The first row past it."""
        return self.top + self.height


def find(picture: Bytes) -> list[Box]:
    """Symbols of uint8[H, W] or uint8[H, W, C] in reading order: lines from the top, each from the left.

    The rarer of dark and light is ink. Raises DataError where there are too many to be symbols, or OpenCV
    is not installed.
    """
    cv2 = _opencv()
    grey = picture if picture.ndim == 2 else picture.mean(axis=2).astype(np.uint8)
    _, ink = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    if np.count_nonzero(ink) * 2 > ink.size:
        ink = 255 - ink
    contours, _ = cv2.findContours(ink, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    least = SMALLEST * max(grey.shape)
    found = [Box(*cv2.boundingRect(contour)) for contour in contours]
    found = [box for box in found if max(box.width, box.height) >= least]
    if len(found) > MAX_SYMBOLS:
        raise DataError(f"{len(found)} separate spots, expected at most {MAX_SYMBOLS} symbols")
    return _reading_order(_whole(found))


def cut(picture: Bytes, box: Box, margin: float = MARGIN) -> Bytes:
    """The symbol in the middle of a square of the picture's ground colour, with a margin."""
    part = picture[box.top : box.bottom, box.left : box.right]
    side = round(max(box.width, box.height) * (1 + 2 * margin))
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    square = np.empty((side, side, *picture.shape[2:]), np.uint8)
    square[:] = np.median(edge, axis=0).astype(np.uint8)
    top, left = (side - box.height) // 2, (side - box.width) // 2
    square[top : top + box.height, left : left + box.width] = part
    return square


def _whole(parts: list[Box]) -> list[Box]:
    """Parts that stand above each other and close together as one symbol."""
    whole: list[Box] = []
    for part in sorted(parts, key=lambda b: (b.left, b.top)):
        for i, other in enumerate(whole):
            if _together(other, part):
                whole[i] = _around(other, part)
                break
        else:
            whole.append(part)
    return whole


def _together(a: Box, b: Box) -> bool:
    shared = min(a.right, b.right) - max(a.left, b.left)
    apart = max(a.top, b.top) - min(a.bottom, b.bottom)
    # Half of the narrower lies above or below the other, and the gap is smaller than they are.
    return shared * 2 >= min(a.width, b.width) and apart < max(min(a.width, b.width), min(a.height, b.height))


def _around(a: Box, b: Box) -> Box:
    left, top = min(a.left, b.left), min(a.top, b.top)
    return Box(left, top, max(a.right, b.right) - left, max(a.bottom, b.bottom) - top)


def _reading_order(boxes: list[Box]) -> list[Box]:
    """A box belongs to the line whose first box it stands beside by half of its height or more."""
    lines: list[list[Box]] = []
    for box in sorted(boxes, key=lambda b: b.top):
        for line in lines:
            beside = min(line[0].bottom, box.bottom) - max(line[0].top, box.top)
            if beside * 2 >= min(line[0].height, box.height):
                line.append(box)
                break
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda b: b.left)]


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise DataError("finding symbols needs OpenCV: pip install 'apiary-fl[camera]'") from None
    return cv2
