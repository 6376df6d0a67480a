"""Frames as a camera would give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Frame = NDArray[np.uint8]


def pattern(seed: int, width: int = 320, height: int = 240) -> Frame:
    """A sharp scene of large and small patches, another one for each seed."""
    rng = np.random.default_rng(seed)
    large = rng.integers(40, 215, (6, 8, 3), np.uint8)
    small = rng.integers(-25, 25, (height // 8, width // 8, 1))
    picture = np.kron(large, np.ones((height // 6, width // 8, 1), np.uint8)).astype(int)
    return np.clip(picture + np.kron(small, np.ones((8, 8, 1), int)), 0, 255).astype(np.uint8)


def blurred(frame: Frame, radius: float) -> Frame:
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius)))
