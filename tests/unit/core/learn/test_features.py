"""Features of a frozen base are computed once a picture, kept by base, and checked."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apiary.errors import DataError, ModelError
from apiary.learn import features, images
from apiary.learn.cache import ArrayCache
from apiary.learn.images import Dataset, Scan
from apiary.learn.manifest import PictureInput
from apiary.learn.runtimes.base import FeatureExtractor
from apiary.tensors import Array

SMALL = PictureInput(height=4, width=4, channels=3)


class Means:
    """A base whose features are the channels' means; counts its calls."""

    calls = 0

    def features(self, picture: Array) -> Array:
        assert picture.dtype == np.float32
        self.calls += 1
        return np.asarray(picture.mean(axis=(0, 1), dtype=np.float32))


def never() -> FeatureExtractor:
    pytest.fail("the base was opened although every picture is in the cache")


def save(folder: Path, count: int, side: int = 4) -> Scan:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("cat", "dog")[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return images.scan(folder, ["cat", "dog"])


def load(found: Scan, base: Means | None, cache: ArrayCache | None = None, name: str = "b1") -> Dataset:
    return features.load(
        found, SMALL, (lambda: base) if base else never, length=3, base_digest=name, cache=cache
    )


def test_features_are_computed_once_and_the_base_is_not_even_opened_again(tmp_path: Path) -> None:
    found = save(tmp_path / "data", 3)
    base, cache = Means(), ArrayCache(tmp_path / "cache", 1)
    first = load(found, base, cache)
    assert base.calls == 3
    pictures = images.load(found, SMALL)
    assert np.allclose(first.x, pictures.x.mean(axis=(1, 2)))
    assert (first.y == pictures.y).all() and first.digests == pictures.digests
    again = load(found, None, ArrayCache(tmp_path / "cache", 1))
    assert np.array_equal(first.x, again.x)
    load(found, base, cache, "b2")
    assert base.calls == 6


def test_one_picture_at_a_time_is_in_memory(tmp_path: Path) -> None:
    found = save(tmp_path, 40, side=200)
    to = PictureInput(height=200, width=200, channels=3)
    base = Means()
    features.load(found, to, lambda: base, length=3, base_digest="b")  # Pillow's own modules
    tracemalloc.start()
    features.load(found, to, lambda: base, length=3, base_digest="b")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 120 kB as bytes, four times that as floats; all forty would be 4.8 MB.
    assert peak < 3_000_000


def test_a_torn_picture_is_left_out_with_the_reason(tmp_path: Path) -> None:
    found = save(tmp_path, 3)
    found.records[1].path.write_bytes(b"nonsense")
    data = load(found, Means())
    assert len(data) == len(data.digests) == 2
    assert [s.path for s in data.skipped] == [found.records[1].path]


def test_features_larger_than_the_bound_are_refused_before_any_is_made(tmp_path: Path) -> None:
    found = save(tmp_path, 2)
    base = Means()
    assert len(features.load(found, SMALL, lambda: base, length=3, base_digest="b", max_bytes=24)) == 2
    with pytest.raises(DataError, match="the features of 2 pictures take"):
        features.load(found, SMALL, never, length=3, base_digest="b", max_bytes=23)


def test_a_base_of_another_length_than_the_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the base gives \[3\] features, the manifest says 4"):
        features.load(save(tmp_path, 1), SMALL, Means, length=4, base_digest="b")
