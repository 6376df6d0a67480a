"""What the tests of the labelling page share."""

from __future__ import annotations

import io

from PIL import Image

from apiary.settings import StoreSettings

TOKEN = "a-token-of-the-owner-that-is-long-enough"
BOUNDS = StoreSettings(min_free_mb=0)


def picture(i: int, size: tuple[int, int] = (32, 24), kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (i * 7 % 256, i * 13 % 256, i % 256)).save(out, kind)
    return out.getvalue()
