"""Features of a frozen base are computed once a picture, kept by base, and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apiary.errors import ModelError
from apiary.learn.cache import ArrayCache
from apiary.learn.features import extract
from apiary.learn.images import Dataset
from apiary.tensors import Array

PICTURES = Dataset(
    np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3),
    np.array([0, 1, 0]),
    ("aa" * 32, "bb" * 32, "cc" * 32),
    ("cat", "dog"),
)


class Means:
    """A base whose features are the channels' means; counts its calls."""

    calls = 0

    def features(self, picture: Array) -> Array:
        assert picture.dtype == np.float32
        self.calls += 1
        return picture.mean(axis=(0, 1), dtype=np.float32)


def test_features_are_computed_once_and_the_base_is_not_even_opened_again(tmp_path: Path) -> None:
    base, cache = Means(), ArrayCache(tmp_path, 1)
    first = extract(PICTURES, lambda: base, length=3, base_digest="b1", cache=cache)
    assert base.calls == 3
    assert np.allclose(first.x, PICTURES.x.mean(axis=(1, 2)))
    assert (first.y == PICTURES.y).all()
    again = extract(
        PICTURES,
        lambda: pytest.fail("opened again"),
        length=3,
        base_digest="b1",
        cache=ArrayCache(tmp_path, 1),
    )
    assert np.array_equal(first.x, again.x)
    extract(PICTURES, lambda: base, length=3, base_digest="b2", cache=cache)
    assert base.calls == 6


def test_a_base_of_another_length_than_the_manifest_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the base gives \[3\] features, the manifest says 4"):
        extract(PICTURES, Means, length=4, base_digest="b")
