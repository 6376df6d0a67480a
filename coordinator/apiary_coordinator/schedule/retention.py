"""Bounds what runs leave, however long a coordinator stays up; serves the newest model between runs."""

import logging
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from apiary.wire.messages import RoundResult
from apiary_coordinator.resources import Resources
from apiary_coordinator.run.announcer import publish_result
from apiary_coordinator.run.current_model import CurrentModel, offer_model
from apiary_coordinator.schedule.runbook import RunBook

log = logging.getLogger(__name__)

WHOLE: Final = 2
"""The newest runs keep their models and the journal's rows of each node."""
_LOOK_BACK: Final = 12
"""Runs that are looked through each time: one begins at a time, and a journal of before has its turn too."""


def clear(resources: Resources, book: RunBook, runs_dir: Path, keep_runs: int) -> None:
    """Of all but the newest runs remove the models, then what each node contributed; in the end the run.

    Runs beyond the `keep_runs` newest are removed with their folders; 0 keeps all. Raises StoreError.
    """
    runs = book.begun(_LOOK_BACK)
    current = CurrentModel(resources.storage.journal).read()
    keep = {digest for run in runs[:WHOLE] for digest in book.blobs(run.run)}
    keep |= book.blobs(current.run) if current is not None else set()
    for run in runs[WHOLE:]:
        for digest in book.blobs(run.run) - keep:
            resources.storage.blobs.remove(digest)
    for name in book.bulky(WHOLE)[:_LOOK_BACK]:
        resources.storage.journal.trim(name)
    for name in book.old(keep_runs) if keep_runs else ():
        if current is not None and name == current.run:
            continue
        log.info("run=%s is removed with its folder: there are newer ones (coordinator.keep_runs)", name)
        book.strike(name)
        remove = partial(shutil.rmtree, runs_dir / name, ignore_errors=True)
        resources.worker.submit(remove, lambda _: None)


def serve_current_model(resources: Resources, expected: int) -> None:
    """Serve the model that the fleet predicts with, and publish it and its round's result again: `expected`
    nodes may want it before the next round. Raises StoreError.
    """
    place = CurrentModel(resources.storage.journal)
    current = place.read()
    if current is None or current.model not in resources.storage.blobs:
        return
    offer_model(resources, current, expected)
    newest = place.newest_result()
    if newest is not None:
        with suppress(ValidationError):  # of another version: offering the model has logged that
            publish_result(resources.outgoing.outlet, RoundResult.model_validate(newest))
