"""What a frame looks like, in three numbers: is it the last one again, is it sharp, is it black. Pure numpy.

All work on a small grey version of the frame, so that a Pi Zero does 5 a second on a few percent of a core.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

GREY_WIDTH: Final = 320
"""Frames are judged at about this width, so that a threshold means the same for every camera."""
_ALMOST_WHITE: Final = 250


@dataclass(frozen=True, slots=True)
class Looks:
    """`likeness` 64 bit dHash; `sharpness` variance of the Laplacian; `brightness` mean grey 0..255.

    `white` is the share of pixels that are almost white, 0..1.
    """

    likeness: int
    sharpness: float
    brightness: float
    white: float


def looks(frame: NDArray[np.uint8]) -> Looks:
    """Judge a frame uint8[H, W, 3]."""
    grey = small_grey(frame)
    return Looks(
        likeness=dhash(grey),
        sharpness=sharpness(grey),
        brightness=float(grey.mean()),
        white=float((grey >= _ALMOST_WHITE).mean()),
    )


def small_grey(frame: NDArray[np.uint8], width: int = GREY_WIDTH) -> NDArray[np.float32]:
    """Grey float32[h, w], 0..255, averaged over whole blocks of pixels down to about `width`."""
    step = max(1, round(frame.shape[1] / width))
    height, wide = frame.shape[0] // step, frame.shape[1] // step
    if height == 0 or wide == 0:
        step, (height, wide) = 1, frame.shape[:2]
    # Rec. 601 luma in 1/256, as JPEG has it; one plane of 32 bits is all the memory that this takes.
    weighted = frame[: height * step, : wide * step, 0].astype(np.uint32) * 77
    weighted += frame[: height * step, : wide * step, 1].astype(np.uint32) * 150
    weighted += frame[: height * step, : wide * step, 2].astype(np.uint32) * 29
    blocks = weighted.reshape(height, step, wide, step).sum(axis=(1, 3), dtype=np.uint32)
    grey: NDArray[np.float32] = (blocks / np.float32(256 * step * step)).astype(np.float32)
    return grey


def dhash(grey: NDArray[np.float32]) -> int:
    """64 bits: whether each of 8x9 areas is brighter than its right neighbour (Krawetz 2013)."""
    if grey.shape[0] < 8 or grey.shape[1] < 9:
        grey = np.kron(grey, np.ones((8, 9), np.float32))
    rows = np.linspace(0, grey.shape[0], 9).astype(int)
    columns = np.linspace(0, grey.shape[1], 10).astype(int)
    # A summed-area table gives each area's mean, also where areas differ by a pixel.
    table = np.zeros((grey.shape[0] + 1, grey.shape[1] + 1))
    np.cumsum(np.cumsum(grey, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
    corners = table[np.ix_(rows, columns)]
    sums = corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]
    areas = np.maximum(1, np.outer(np.diff(rows), np.diff(columns)))
    means = sums / areas
    # Half a grey level: the noise of a plain wall is no likeness.
    bits = (means[:, :-1] > means[:, 1:] + 0.5).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes())


def distance(a: int, b: int) -> int:
    """Bits in which two hashes differ, 0..64."""
    return (a ^ b).bit_count()


def sharpness(grey: NDArray[np.float32]) -> float:
    """Variance of the 4-neighbour Laplacian (Pech-Pacheco et al. 2000): low where there are no edges."""
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(laplacian.var())
