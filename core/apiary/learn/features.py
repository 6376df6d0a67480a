"""Pictures through a frozen base, once each: features on disk by picture digest and base digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from apiary.errors import ModelError
from apiary.learn.cache import ArrayCache
from apiary.learn.images import Dataset
from apiary.learn.runtimes.base import FeatureExtractor


def extract(
    pictures: Dataset,
    open_base: Callable[[], FeatureExtractor],
    *,
    length: int,
    base_digest: str,
    cache: ArrayCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The same samples with `x` float32[N, length]. `progress(done, all)`. Raises ModelError.

    The base is opened only if a picture is not in the cache, so that a node that saw them all never loads it.
    """
    space = f"features-{base_digest}"
    x = np.empty((len(pictures), length), np.float32)
    base: FeatureExtractor | None = None
    for i, digest in enumerate(pictures.digests):
        row = cache.get(space, digest, (length,), np.float32) if cache else None
        if row is None:
            base = base or open_base()
            row = base.features(pictures.floats(slice(i, i + 1))[0])
            if row.shape != (length,):
                raise ModelError(f"the base gives {list(row.shape)} features, the manifest says {length}")
            if cache:
                cache.put(space, digest, row)
        x[i] = row
        if progress:
            progress(i + 1, len(pictures))
    return replace(pictures, x=x)
