"""What the tests of the labelling page share."""

from __future__ import annotations

import io

from PIL import Image

from apiary_edge.samples.model import StoreBounds

TOKEN = "a-token-of-the-owner-that-is-long-enough"
BOUNDS = StoreBounds(min_free_bytes=0)


def picture(i: int, size: tuple[int, int] = (32, 24), kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (i * 7 % 256, i * 13 % 256, i % 256)).save(out, kind)
    return out.getvalue()
