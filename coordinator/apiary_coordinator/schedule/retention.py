"""What runs leave, bounded however long a coordinator stays up; and the newest model, to be had always."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from typing import Final

from pydantic import ValidationError

from apiary.wire.messages import BlobRef, RoundResult
from apiary_coordinator.feature import Desk
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.run.announcer import Announcer
from apiary_coordinator.run.run import LENT
from apiary_coordinator.schedule.runbook import RunBook

log = logging.getLogger(__name__)

WHOLE: Final = 2
"""The newest runs keep their models and the journal's word on each node."""
_LOOK_BACK: Final = 12
"""Runs that are looked through each time: one begins at a time, and a journal of before has its turn too."""


def clear(desk: Desk, book: RunBook, *, folders: bool) -> None:
    """Of all but the newest runs take the models, then what each node contributed; in the end the run.

    `folders`: also the runs beyond `coordinator.keep_runs`. Raises StoreError.
    """
    runs = book.begun(_LOOK_BACK)
    lent = book.newest_model()
    keep = {digest for run in runs[:WHOLE] for digest in book.blobs(run.run)}
    keep |= book.blobs(lent.run) if lent is not None else set()
    for run in runs[WHOLE:]:
        for digest in book.blobs(run.run) - keep:
            desk.blobs.remove(digest)
    for name in book.bulky(WHOLE)[:_LOOK_BACK]:
        desk.journal.trim(name)
    most = desk.settings.coordinator.keep_runs
    for name in book.old(most) if folders and most else ():
        log.info("run=%s is removed with its folder: there are newer ones (coordinator.keep_runs)", name)
        book.strike(name)
        folder = desk.settings.coordinator.runs_dir / name
        desk.worker.submit(partial(shutil.rmtree, folder, ignore_errors=True), lambda _: None)


def remind(desk: Desk, book: RunBook) -> None:
    """Lend the newest model, and say it again: nodes that predict may want it before the next round.

    Raises StoreError.
    """
    lent = book.newest_model()
    if lent is None or lent.model not in desk.blobs:
        return
    try:
        artefacts = ExportedModel.model_validate_json(lent.artefacts)
        result = RoundResult.model_validate(lent.result)
    except ValidationError as e:
        log.warning("run=%s was journaled by another version: its model is not lent: %s", lent.run, e)
        return
    model = BlobRef(digest=lent.model, bytes=desk.blobs.path(lent.model).stat().st_size)
    refs = (model, artefacts.manifest, artefacts.trainer, artefacts.base)
    desk.down.serve([ref for ref in refs if ref is not None], max(1, len(desk.roster)), LENT)
    bulletin = Announcer(lent.run, desk.settings.run, outlet=desk.outlet, epoch=desk.epoch)
    bulletin.remind(result)
    bulletin.model(result, model, artefacts, best=lent.best)
