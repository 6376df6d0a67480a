"""Bounds what runs leave, however long a coordinator stays up; serves the newest model between runs."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from apiary.wire.messages import RoundResult
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.checkpoints import model_ref
from apiary_coordinator.resources import Resources
from apiary_coordinator.run.announcer import publish_result
from apiary_coordinator.run.messages import newest_model
from apiary_coordinator.run.run import MODEL_OWNER
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
    newest = book.newest_model()
    keep = {digest for run in runs[:WHOLE] for digest in book.blobs(run.run)}
    keep |= book.blobs(newest.run) if newest is not None else set()
    for run in runs[WHOLE:]:
        for digest in book.blobs(run.run) - keep:
            resources.storage.blobs.remove(digest)
    for name in book.bulky(WHOLE)[:_LOOK_BACK]:
        resources.storage.journal.trim(name)
    for name in book.old(keep_runs) if keep_runs else ():
        log.info("run=%s is removed with its folder: there are newer ones (coordinator.keep_runs)", name)
        book.strike(name)
        remove = partial(shutil.rmtree, runs_dir / name, ignore_errors=True)
        resources.worker.submit(remove, lambda _: None)


def serve_newest_model(resources: Resources, book: RunBook, expected: int) -> None:
    """Serve the newest model and publish it again: `expected` nodes may want it before the next round.

    Raises StoreError.
    """
    newest = book.newest_model()
    if newest is None or newest.model not in resources.storage.blobs:
        return
    try:
        exported = ExportedModel.model_validate_json(newest.exported)
        result = RoundResult.model_validate(newest.result)
    except ValidationError as e:
        log.warning("run=%s was journaled by another version: its model is not served: %s", newest.run, e)
        return
    model = model_ref(resources.storage.blobs, newest.model)
    resources.outgoing.model_server.serve([model, *exported.files], max(1, expected), MODEL_OWNER)
    publish_result(resources.outgoing.outlet, result)
    resources.outgoing.outlet.send(newest_model(result, model, exported, best=newest.best))
