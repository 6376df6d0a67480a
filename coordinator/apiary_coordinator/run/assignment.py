"""What a run is given: what it is to do, and what it works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiary.blobs import BlobStore
from apiary.bus.bus import Bus
from apiary.bus.flow import ChunkFlow
from apiary.bus.outlet import Outlet
from apiary.settings import Settings
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.builder import ExportedModel, ModelBuilder
from apiary_coordinator.updates.model_server import ModelServer
from apiary_coordinator.worker import Worker


@dataclass(frozen=True, slots=True)
class Assignment:
    """A run to be done: a new one, or one that was interrupted. `settings` holds the run's own `[run]`."""

    run: str
    created: float
    settings: Settings
    workshop: ModelBuilder
    artefacts: ExportedModel | None = None
    """What was built before; used where it is still whole."""
    stop: str | None = None
    """Why it was told to end before it was interrupted."""


@dataclass(frozen=True, slots=True)
class Means:
    """What runs work with."""

    journal: Journal
    blobs: BlobStore
    worker: Worker
    bus: Bus
    outlet: Outlet
    flow: ChunkFlow
    down: ModelServer
    roster: Roster
    clock: Callable[[], float]
    wall: Callable[[], float]
    inspect: Callable[[Path], Any]
