"""Which model the fleet predicts with, `model/current`: never a worse one than there was.

A run offers the best of its rounds once that is as good as what is there; at its end its best checkpoint
takes the place, unless it is worse than the model that the run began with. Kept in the journal.
"""

import json
import logging
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from apiary.wire import Digest
from apiary.wire.messages import RoundResult
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.checkpoints import model_ref
from apiary_coordinator.resources import Resources
from apiary_coordinator.run import stopping
from apiary_coordinator.run.messages import current_model
from apiary_coordinator.run.stopping import Best

log = logging.getLogger(__name__)

_OWNER: Final = "model"
"""Of its blobs at the model server: apart from those of the round that is open."""
_REMEMBERED: Final = "model.current"


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A closed round's result and model, and as JSON what its run trains."""

    run: str
    result: dict[str, Any]
    model: Digest
    exported: str
    remembered: bool = True
    """False where a version before remembered none: then it is the best of the newest run."""

    @property
    def round(self) -> int:
        """The round's number."""
        return int(self.result["round"])

    @property
    def accuracy(self) -> float | None:
        """On the held-out pictures of its run."""
        found = self.result.get("accuracy")
        return float(found) if found is not None else None


@dataclass(frozen=True, slots=True)
class Bar:
    """What a run's model must reach to take the place of another run's.

    `start` is the accuracy of the model that the run began with, on the run's own pictures; None where it
    began from scratch. `current` is that of the model in place, None where it cannot be compared: it has
    other labels.
    """

    start: float | None = None
    current: float | None = None


def takes_place(best: Best, bar: Bar, *, over: bool) -> bool:
    """Whether the best model of a run takes the place of another run's now; `over`: at the run's end."""
    if over:
        return bar.start is None or best.accuracy >= bar.start
    known = [one for one in (bar.start, bar.current) if one is not None]
    return bool(known) and best.accuracy >= max(known)


def offer_model(resources: Resources, found: OfferedModel, expected: int) -> None:
    """Serve its blobs to about `expected` nodes, between rounds too, and publish its manifest.

    Raises StoreError; a model of another version is left out with a warning.
    """
    try:
        exported = ExportedModel.model_validate_json(found.exported)
        result = RoundResult.model_validate(found.result)
    except ValidationError as e:
        log.warning("run=%s was journaled by another version: its model is not served: %s", found.run, e)
        return
    model = model_ref(resources.storage.blobs, found.model)
    resources.outgoing.model_server.serve([model, *exported.files], max(1, expected), _OWNER)
    resources.outgoing.outlet.send(current_model(result, model, exported))


class CurrentModel:
    """Reads and remembers it."""

    def __init__(self, journal: Journal):
        self._journal = journal

    def read(self) -> OfferedModel | None:
        """The model in place; None before the first. Raises StoreError."""
        named = self._journal.recall(_REMEMBERED)
        if isinstance(named, dict):
            found = self._of(str(named.get("run")), named.get("round"))
            if found is not None:
                return found
        return self._newest()

    def offer(self, run: str, number: int) -> OfferedModel | None:
        """From now on it is that of a closed round. Raises StoreError."""
        self._journal.remember(_REMEMBERED, {"run": run, "round": number})
        return self._of(run, number)

    def newest_result(self) -> dict[str, Any] | None:
        """How the newest round was closed, of the newest run that closed one. Raises StoreError."""
        run, rounds = self._closed()
        found = self._of(run, rounds[-1][0]) if rounds else None
        return found.result if found is not None else None

    def _newest(self) -> OfferedModel | None:
        """The version before remembered none: the best round of the newest run that closed one."""
        run, rounds = self._closed()
        best = stopping.best_of(rounds)
        found = self._of(run, best.round) if best is not None else None
        return replace(found, remembered=False) if found is not None else None

    def _closed(self) -> tuple[str, list[tuple[int, float, float]]]:
        """The newest run that closed a round, and (number, accuracy, loss) of all that it closed."""
        closed = "json_extract(result, '$.state') = 'closed'"
        runs = self._journal.select(
            "SELECT id FROM run WHERE artefacts IS NOT NULL AND EXISTS"  # noqa: S608 - fixed names
            f" (SELECT 1 FROM round WHERE round.run = run.id AND {closed}) ORDER BY rowid DESC LIMIT 1"
        )
        run = str(runs[0][0]) if runs else ""
        columns = "number, json_extract(result, '$.accuracy'), json_extract(result, '$.loss')"
        query = f"SELECT {columns} FROM round WHERE run = ? AND {closed} ORDER BY number"  # noqa: S608 - fixed names
        return run, [(n, a, loss) for n, a, loss in self._journal.select(query, (run,))]

    def _of(self, run: str, number: Any) -> OfferedModel | None:
        query = (
            "SELECT result, model, artefacts FROM round JOIN run ON run.id = round.run"
            " WHERE run = ? AND number = ? AND result IS NOT NULL AND artefacts IS NOT NULL"
        )
        for result, model, exported in self._journal.select(query, (run, number)):
            return OfferedModel(run, json.loads(result), Digest(model), exported)
        return None
