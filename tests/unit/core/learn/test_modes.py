"""Pictures of more than 8 bits, and with transparent pixels, come out as they look."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tests.stand_ins.folders import picture, png_of_16_bits

from apiary.learn import images
from apiary.learn.folder import walk
from apiary.learn.manifest import PictureInput
from apiary.learn.modes import plain
from apiary_edge.samples.clean import clean

GREY = PictureInput(height=4, width=4, channels=1)


def halves(left: int, right: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    return np.repeat(np.array([[left, right]], np.uint16), 8, 1).repeat(16, 0)


@pytest.mark.parametrize(
    ("left", "right", "key", "seen"),
    [
        (0, 65_535, None, (0, 255)),
        (0, 32_768, None, (0, 127)),
        (0, 4_095, None, (0, 255)),  # 12 bits in 16
        (2_048, 4_080, None, (128, 255)),
        (0, 4_096, None, (0, 15)),  # one more than fits into 12
        (30_000, 60_000, 30_000, (255, 233)),  # transparent pixels lie on white
        (1_000, 4_000, 1_000, (255, 250)),
    ],
)
def test_grey_of_16_bits(left: int, right: int, key: int | None, seen: tuple[int, int]) -> None:
    data = png_of_16_bits(halves(left, right), key)
    for one in (data, clean(data).data):
        out = images.decode(one, GREY)[..., 0]
        assert (int(out[0, 0]), int(out[0, -1])) == seen


def test_a_transparent_colour_of_16_bits() -> None:
    made = Image.new("RGB", (8, 8), (220, 30, 30))
    made.info["transparency"] = (220 * 257, 30 * 257, 30 * 257)
    assert plain(made, 3).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "seen"),
    [((0.0, 1.0), (0, 255)), ((0.0, 255.0), (0, 255)), ((0.0, 32_767.5), (0, 127)), ((0.0, np.nan), (0, 0))],
)
def test_numbers_with_a_point(values: tuple[float, float], seen: tuple[int, int]) -> None:
    made = plain(Image.fromarray(np.array([values], np.float32)), 1)
    assert (made.getpixel((0, 0)), made.getpixel((1, 0))) == seen


@pytest.mark.skipif(not walk.reads_heic(), reason="needs the extra heic")
def test_heic_is_read_with_its_extra_and_imported_as_jpeg() -> None:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(picture("red", 1, (64, 48))).save(out, quality=90)
    seen = images.decode(out.getvalue(), PictureInput(height=48, width=64, channels=3))
    assert np.abs(seen[10, 10].astype(int) - (220, 30, 30)).max() < 40
    stored = clean(out.getvalue())
    assert (stored.suffix, stored.width, stored.height) == ("jpg", 64, 48)
    assert ".heic" in walk.picture_suffixes()
