"""Pictures through a frozen base, once each: features on disk by picture digest and base digest."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apiary.errors import DataError, ModelError
from apiary.learn import images
from apiary.learn.cache import ArrayCache
from apiary.learn.images import Dataset, Scan
from apiary.learn.manifest import PictureInput
from apiary.learn.runtimes.base import FeatureExtractor


def load(
    found: Scan,
    to: PictureInput,
    open_base: Callable[[], FeatureExtractor],
    *,
    length: int,
    base_digest: str,
    cache: ArrayCache | None = None,
    max_bytes: int = images.MAX_DATASET_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The pictures of a scan as features, `x` float32[N, length]. `progress(done, all)`.

    One picture is decoded at a time and none is kept: 1,000 of 160x160 would be 77 MB of a small Pi's memory.
    The base is opened only if a picture is not in the cache, so that a node that saw them all never loads it.
    Raises DataError as `images.load`, ModelError where the base gives something else.
    """
    if (need := len(found.records) * length * 4) > max_bytes:
        raise DataError(
            f"{found.folder}: the features of {len(found.records)} pictures take {need // 2**20} MB, "
            f"expected at most {max_bytes // 2**20} MB: move some out"
        )
    space = f"features-{base_digest}"
    base: FeatureExtractor | None = None

    def row(data: bytes, digest: str) -> NDArray[Any]:
        nonlocal base
        kept = cache.get(space, digest, (length,), np.float32) if cache else None
        if kept is not None:
            return kept
        picture = images.decode(data, to).astype(np.float32)
        base = base or open_base()
        made = base.features(picture)
        if made.shape != (length,):
            raise ModelError(f"the base gives {list(made.shape)} features, the manifest says {length}")
        if cache:
            cache.put(space, digest, made)
        return made

    return images.gather(found, np.empty((len(found.records), length), np.float32), row, progress)
