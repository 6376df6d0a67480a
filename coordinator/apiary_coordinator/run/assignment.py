"""What a run is given to do."""

from dataclasses import dataclass

from apiary.settings import Settings
from apiary_coordinator.model.builder import ExportedModel, ModelBuilder


@dataclass(frozen=True, slots=True)
class Assignment:
    """A new run, or one that was interrupted. `settings` holds the run's own `[run]`."""

    run: str
    created: float
    settings: Settings
    builder: ModelBuilder
    exported: ExportedModel | None = None
    """What was built before; used where it is still whole."""
    stop: str | None = None
    """Why it was requested to end before it was interrupted."""
