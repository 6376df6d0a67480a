"""Pictures changed at random before each step, so that a few teach more: on bytes, by the node's seed. Pure.

The same seed gives the same pictures on every machine with the same numpy. A new kind of change draws its
numbers after those of the kinds before, so that a plan without it trains to the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apiary.tensors import Array
from apiary.wire.messages import Plan

Pictures = NDArray[np.uint8]
"""uint8[B, H, W, C]."""


def augments(plan: Plan) -> bool:
    """Whether a plan changes pictures."""
    return plan.flip or any(
        (plan.shift, plan.rotate, plan.zoom, plan.brightness, plan.contrast, plan.erase, plan.mix)
    )


def augment(pictures: Pictures, rng: np.random.Generator, plan: Plan) -> Pictures:
    """A copy, each picture changed by itself: flipped, moved, turned, scaled, brightness, contrast, erased.

    The edge's pixels fill what opens. Draws the same numbers whatever comes of them, so that a picture's fate
    hangs on its place in the batch alone. Pictures are mixed by `mixed`.
    """
    out = pictures.copy()
    count = len(pictures)
    if plan.flip or plan.shift:
        flips = rng.random(count) < 0.5
        moves = rng.uniform(-plan.shift, plan.shift, (count, 2))
        for i in range(count):
            if plan.flip and flips[i]:
                out[i] = out[i, :, ::-1]
            out[i] = _moved(out[i], *moves[i])
    if plan.rotate or plan.zoom:
        angles = np.deg2rad(rng.uniform(-plan.rotate, plan.rotate, count))
        scales = 1 + rng.uniform(-plan.zoom, plan.zoom, count)
        for i in range(count):
            out[i] = _turned(out[i], float(angles[i]), float(scales[i]))
    if plan.brightness or plan.contrast:
        shifts = 255 * rng.uniform(-plan.brightness, plan.brightness, count)
        factors = 1 + rng.uniform(-plan.contrast, plan.contrast, count)
        means = out.mean(axis=(1, 2, 3))
        shape = (count, 1, 1, 1)
        values = (out - means.reshape(shape)) * factors.reshape(shape) + (means + shifts).reshape(shape)
        out = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if plan.erase:
        _erase(out, rng, plan.erase)
    return out


def mixed(
    pictures: Pictures, y: Array, w: Array, rng: np.random.Generator, *, alpha: float, real: int
) -> tuple[Pictures, Array, Array]:
    """Each of the first `real` pictures mixed with another of them, and so its label and its weight.

    The share of the first is drawn from Beta(alpha, alpha), and is the larger one: mixup (Zhang et al. 2018,
    arXiv:1710.09412). What fills the batch up stays as it is: its weight is 0.
    """
    count = len(pictures)
    others = np.arange(count)
    others[:real] = rng.permutation(real)
    shares = rng.beta(alpha, alpha, count).astype(np.float32)
    shares = np.maximum(shares, 1 - shares)
    shares[real:] = 1
    of = shares[:, None, None, None]
    x = np.rint(of * pictures + (1 - of) * pictures[others]).astype(np.uint8)
    return x, shares[:, None] * y + (1 - shares[:, None]) * y[others], shares * w + (1 - shares) * w[others]


def _moved(picture: Pictures, down: float, right: float) -> Pictures:
    """By shares of its sides."""
    height, width = picture.shape[:2]
    rows, columns = int(np.rint(down * height)), int(np.rint(right * width))
    if not rows and not columns:
        return picture
    y = np.clip(np.arange(height) - rows, 0, height - 1)
    x = np.clip(np.arange(width) - columns, 0, width - 1)
    moved: Pictures = picture[y[:, None], x[None, :]]
    return moved


def _turned(picture: Pictures, angle: float, scale: float) -> Pictures:
    """Turned and scaled around its middle; between four pixels by how near each is."""
    height, width = picture.shape[:2]
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = (y - middle_y) / scale, (x - middle_x) / scale
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    from_y = np.clip(cos * y - sin * x + middle_y, 0, height - 1)
    from_x = np.clip(sin * y + cos * x + middle_x, 0, width - 1)
    top, left = from_y.astype(np.intp), from_x.astype(np.intp)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (from_y - top)[..., None], (from_x - left)[..., None]
    upper = picture[top, left] * (1 - across) + picture[top, right] * across
    lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
    turned: Pictures = np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
    return turned


def _erase(pictures: Pictures, rng: np.random.Generator, most: float) -> None:
    """In half of the pictures a rectangle in their mean colour (Zhong et al. 2017, arXiv:1708.04896)."""
    count, height, width = pictures.shape[:3]
    chosen = rng.random(count) < 0.5
    areas = rng.uniform(0, most, count)
    ratios = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), count))
    places = rng.random((count, 2))
    for i in np.flatnonzero(chosen):
        tall = min(height, int(np.rint(np.sqrt(areas[i] * ratios[i]) * height)))
        wide = min(width, int(np.rint(np.sqrt(areas[i] / ratios[i]) * width)))
        top, left = int(places[i, 0] * (height - tall + 1)), int(places[i, 1] * (width - wide + 1))
        mean = np.rint(pictures[i].mean(axis=(0, 1))).astype(np.uint8)
        pictures[i, top : top + tall, left : left + wide] = mean
