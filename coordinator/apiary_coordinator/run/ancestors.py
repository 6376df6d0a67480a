"""Finds the model that a run begins with (`run.start_from`), and reads its weights."""

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from apiary.errors import DataError, SettingsError
from apiary.settings import RunSettings
from apiary.settings.run import LATEST, SCRATCH
from apiary.tensors import Weights
from apiary.wire import Digest, blob
from apiary_coordinator.journal import RunRow
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.recipes.base import check_options
from apiary_coordinator.resources import Storage
from apiary_coordinator.run import stopping
from apiary_coordinator.run.finished import read_labels, run_name

log = logging.getLogger(__name__)

KERAS: Final = ".keras"
_MODEL: Final = "model.keras"
_OVER: Final = "state IN ('finished', 'stopped') ORDER BY rowid DESC"
_LISTED: Final = 5


class Ancestors:
    """Models that runs of this state folder, or files, can begin with. `find` is called on the loop."""

    def __init__(self, storage: Storage, runs_dir: Path):
        self._journal = storage.journal
        self._blobs = storage.blobs
        self._runs_dir = runs_dir

    def find(self, run: RunSettings) -> Ancestor | None:
        """What `run.start_from` names; None for a run that begins from scratch.

        `latest` is the best model of the newest run that is over and was not worse than its own ancestor;
        None where no run has a model yet. Raises SettingsError where there is none of that name, or it does
        not fit the run's recipe.
        """
        wanted = run.start_from
        if wanted in (None, SCRATCH):
            return None
        if wanted == LATEST:
            return self._latest(run)
        if wanted.endswith(KERAS):
            return _of_file(Path(wanted), run)
        row = self._journal.run(run_name(wanted))
        if row is None or (found := self._best(row)) is None:
            raise SettingsError(f"run.start_from: no run {wanted!r} with a model; {self._known()}")
        if (why := _misfit(row, run)) is not None:
            raise SettingsError(f"run.start_from: {found.name} {why}")
        return self._within_reach(found)

    def weights(self, ancestor: Ancestor) -> Weights | None:
        """Worker: from the blob store; None where they are in a file. Raises StoreError."""
        if ancestor.model is None:
            return None
        return blob.decode(self._blobs.read(Digest(ancestor.model)), who="the blob store").weights

    def _latest(self, run: RunSettings) -> Ancestor | None:
        others = None
        for row in self._journal.runs(_OVER):
            found = self._best(row)
            if found is None or _worse(row, found):
                continue
            if (why := _misfit(row, run)) is None:
                return self._within_reach(found)
            others = others or f"{found.name} {why}"
        if others is not None:
            raise SettingsError(
                f"run.start_from: no run fits, the newest does not: {others}. "
                f"To begin anew: run.start_from = {SCRATCH!r}"
            )
        return None

    def _best(self, row: RunRow) -> Ancestor | None:
        """The best checkpoint of a run that is over; None where it has none."""
        if row.exported is None or row.state not in ("finished", "stopped"):
            return None
        closed = {
            r.number: r for r in self._journal.rounds(row.id) if r.result and r.result["state"] == "closed"
        }
        best = stopping.best_of(
            [(n, r.result["accuracy"], r.result["loss"]) for n, r in closed.items() if r.result]
        )
        if best is None:
            return None
        labels = json.loads(row.exported)["labels"]
        model = closed[best.round].model
        return Ancestor(run=row.id, round=best.round, model=model, labels=labels, accuracy=best.accuracy)

    def _within_reach(self, found: Ancestor) -> Ancestor:
        """The models of older runs are not in the store any more: then that of the run's folder."""
        if found.model is not None and self._blobs.verify(Digest(found.model)):
            return found
        file = self._runs_dir / str(found.run) / _MODEL
        if not file.is_file():
            raise SettingsError(
                f"run.start_from: the model of {found.name} is not in the state folder any more, and there "
                f"is no {file}; {self._known()}"
            )
        return found.model_copy(update={"model": None, "file": str(file)})

    def _known(self) -> str:
        names = [row.id for row in self._journal.runs(_OVER) if self._best(row) is not None]
        shown = ", ".join(names[:_LISTED]) or "none"
        return f"runs with a model: {shown}{', ...' if len(names) > _LISTED else ''}"


def _misfit(row: RunRow, run: RunSettings) -> str | None:
    """Why a model of that run cannot be this run's first, None where it can."""
    try:
        theirs = RunSettings.model_validate_json(row.settings)
    except ValidationError:
        return "was journaled by another version"
    if theirs.recipe != run.recipe:
        return f"is of the recipe {theirs.recipe}, this run's is {run.recipe}"
    there, here = _options(theirs), _options(run)
    if different := sorted(key for key in here if there.get(key) != here[key]):
        key = different[0]
        return f"has the recipe option {key} = {there.get(key)!r}, this run's is {here[key]!r}"
    return None


def _options(run: RunSettings) -> Mapping[str, Any]:
    return check_options(run.recipe, run.recipe_options).model_dump(mode="json")


def _worse(row: RunRow, found: Ancestor) -> bool:
    """Whether that run's best model is worse than the one it began with, on the same pictures."""
    try:
        exported = ExportedModel.model_validate_json(row.exported or "{}")
    except ValidationError:
        return False
    before = exported.ancestor.accuracy_here if exported.ancestor is not None else None
    return before is not None and found.accuracy is not None and found.accuracy < before


def _of_file(file: Path, run: RunSettings) -> Ancestor:
    """What can be known of a `.keras` file without TensorFlow; the export reads the rest."""
    try:
        with zipfile.ZipFile(file) as archive:
            config = json.loads(archive.read("config.json"))
        name = config["config"]["name"]
        labels = tuple(read_labels(file.parent))
    except OSError as e:
        raise SettingsError(f"run.start_from: {file}: {e.strerror}; expected a .keras file") from None
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as e:
        raise SettingsError(f"run.start_from: {file} is no .keras file that can be read: {e}") from None
    except DataError as e:
        raise SettingsError(f"run.start_from: the labels of {file} are expected beside it: {e}") from None
    if name != run.recipe:
        raise SettingsError(
            f"run.start_from: {file} holds the model {name!r}, this run's recipe is {run.recipe!r}"
        )
    return Ancestor(file=str(file), labels=labels)
