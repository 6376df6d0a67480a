"""What is settled before a coordinator starts: its settings hold, and which run it takes up or begins."""

import logging
import time

from apiary.errors import SettingsError
from apiary.settings import RunSettings, Settings
from apiary_coordinator.journal import Journal, RunRow
from apiary_coordinator.resources import Storage
from apiary_coordinator.run.ancestors import Ancestors
from apiary_coordinator.run.checks import check_run, check_settings
from apiary_coordinator.schedule.queue import RESUMES, ModelBuilders, fresh_name, stored
from apiary_coordinator.schedule.runbook import RunBook

log = logging.getLogger(__name__)


def one_run(
    settings: Settings, storage: Storage, builders: ModelBuilders, *, name: str | None, new: bool
) -> RunRow:
    """The run of a coordinator that does not stay: the interrupted one, or a new one, journaled as active.

    An interrupted run of another name, or any with `new`, is abandoned. Raises SettingsError, and DataError
    where the model of a new run could not be built; then nothing is journaled.
    """
    check_settings(settings)
    journal = storage.journal
    row = journal.active_run()
    if row is not None and (new or name not in (None, row.id)):
        abandon(journal, row)
        row = None
    if row is not None:
        return _taken_up(row, settings)
    builders(settings, storage.blobs).labels()
    Ancestors(storage, settings.coordinator.runs_dir).find(settings.run)
    created = time.time()
    run = name or fresh_name(created)
    book = RunBook(journal)
    book.open()
    folder = settings.coordinator.runs_dir
    if (folder / run).exists() or not book.frees(run):
        raise SettingsError(f"there is a run {run!r} already, in {folder} or the journal: give another --run")
    return journal.open_run(run, created, settings.run.journaled())


def check_to_stay(settings: Settings, storage: Storage, *, new: bool) -> None:
    """What every run will need; with `new` an interrupted run is abandoned. Raises SettingsError."""
    check_settings(settings)
    row = storage.journal.active_run()
    if row is not None and new:
        abandon(storage.journal, row)


def abandon(journal: Journal, row: RunRow) -> None:
    """Leave an interrupted run behind."""
    log.info("run=%s is left behind unfinished", row.id)
    journal.end_run(row.id, "abandoned", "left behind for another run")


def _taken_up(row: RunRow, settings: Settings) -> RunRow:
    """An interrupted run, which keeps its own settings. Raises SettingsError with the way out."""
    log.info(RESUMES, row.id)
    try:
        own = stored(row, RunSettings, row.settings)
        check_run(own)
    except SettingsError as e:
        raise SettingsError(
            f"run {row.id} is unfinished, and cannot go on with the settings it began with: {e}. "
            "To leave it behind and begin another: apiary coordinator --new"
        ) from None
    if own != settings.run:
        log.warning("run=%s keeps its own [run] settings; --new begins a run with those given now", row.id)
    return row
