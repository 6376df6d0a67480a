"""Flips and shifts of uint8 pictures, by seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def augment(
    pictures: NDArray[np.uint8], rng: np.random.Generator, *, flip: bool, shift: float
) -> NDArray[np.uint8]:
    """A copy of uint8[B, H, W, C]; each picture flipped left to right by half a chance and moved.

    `shift` is the largest move as a share of the side; the edge's pixels fill what opens. Draws the same
    numbers for every batch size, so that a picture's fate hangs on its place alone.
    """
    count, height, width = pictures.shape[:3]
    flips = rng.random(count) < 0.5
    moves = rng.uniform(-shift, shift, (count, 2))
    out = pictures.copy()
    rows, columns = np.arange(height), np.arange(width)
    for i in range(count):
        if flip and flips[i]:
            out[i] = out[i, :, ::-1]
        down, right = int(np.rint(moves[i, 0] * height)), int(np.rint(moves[i, 1] * width))
        if down or right:
            y = np.clip(rows - down, 0, height - 1)
            x = np.clip(columns - right, 0, width - 1)
            out[i] = out[i][y[:, None], x[None, :]]
    return out
