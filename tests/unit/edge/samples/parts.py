"""What the tests of the sample store share."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from apiary.settings import StoreSettings
from apiary_edge.samples.model import (
    Added,
    Incoming,
    Outcome,
    SampleId,
)
from apiary_edge.samples.store import SampleStore

ROOMY = StoreSettings(min_free_mb=0)


class Clock:
    """Counts up by a second a call."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (24, 16), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def opened(folder: Path, bounds: StoreSettings = ROOMY) -> SampleStore:
    return SampleStore(folder / "samples", folder / "cache", bounds, Clock())


def added(outcome: Outcome) -> SampleId:
    assert isinstance(outcome, Added), outcome
    return outcome.id


def fill(store: SampleStore, count: int, label: str | None = None, start: int = 0) -> list[SampleId]:
    batch = (Incoming(picture(start + i), f"camera {i}", label) for i in range(count))
    return [added(outcome) for outcome in store.add_many(batch)]
