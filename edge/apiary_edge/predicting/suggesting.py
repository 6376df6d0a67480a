"""What the model thinks of pictures without a label, noted in the store for the labelling page."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from apiary.errors import DataError
from apiary.learn import images
from apiary.learn.sample_files import MAX_PIXELS
from apiary.settings import StoreSettings
from apiary_edge.predicting import http_upload, models
from apiary_edge.predicting.model_files import ModelFile
from apiary_edge.samples.model import SampleId
from apiary_edge.samples.store import SampleStore

BATCH: Final = 32
"""Noted together, with one wait for the disk."""


def suggest(
    folder: Path, bounds: StoreSettings, found: ModelFile, say: Callable[[str], None]
) -> tuple[int, int]:
    """Note suggestions until every picture has one of this model: how many, and how many cannot be read.

    Raises ModelError, StoreError.
    """
    model = models.open_model(found)
    store = SampleStore(folder, None, bounds, time.time)
    noted = 0
    failed: set[SampleId] = set()
    try:
        while True:
            waiting = store.awaiting_suggestion(found.digest, BATCH + len(failed))
            waiting = [sample for sample in waiting if sample not in failed][:BATCH]
            if not waiting:
                return noted, len(failed)
            rows: list[tuple[SampleId, str, float]] = []
            for sample in waiting:
                path = store.path(sample)
                try:
                    if path is None:
                        raise DataError("it has just been deleted")
                    data = images.read(path)
                    answered = model.predict(
                        http_upload.frame_of(
                            data, model.input, whole=not model.squashes, max_pixels=MAX_PIXELS
                        )
                    )
                    rows.append((sample, answered.label, answered.probability))
                except DataError as e:
                    failed.add(sample)
                    say(f"{sample[:12]}: no suggestion: {e}")
            noted += store.set_suggestions(found.digest, rows)
    finally:
        store.close()
        model.close()
