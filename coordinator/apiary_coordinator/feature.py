"""A part of the coordinator beside the run: releases, operators, metrics; called on its loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apiary.blobs import BlobStore
from apiary.bus.bus import Bus
from apiary.bus.outlet import Outlet
from apiary.service import Feature
from apiary.settings import Settings
from apiary.wire.topics import Topics
from apiary_coordinator.fleet.roster import Roster
from apiary_coordinator.journal import Journal
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.run import Run
from apiary_coordinator.updates.model_server import ModelServer
from apiary_coordinator.worker import Worker


@dataclass(frozen=True, slots=True)
class Desk:
    """What every part of the coordinator works with. `clock` is monotonic, `wall` seconds since 1970."""

    settings: Settings
    bus: Bus
    topics: Topics
    outlet: Outlet
    journal: Journal
    blobs: BlobStore
    down: ModelServer
    roster: Roster
    worker: Worker
    clock: Callable[[], float]
    wall: Callable[[], float]
    epoch: str
    course: Callable[[], Run | None]
    """The run that is under way, if any."""
    begin: Callable[[Assignment], None]
    """Start a run where none is under way."""


class CoordinatorFeature(Feature):
    """A part of the coordinator beside its run."""

    def finished(self, folder: Path) -> None:
        """A run's result lies in `folder`, reported and published. On the worker's thread; must not raise."""


Features = Callable[[Desk], Sequence[CoordinatorFeature]]


def no_features(desk: Desk) -> Sequence[CoordinatorFeature]:
    """A coordinator that only runs its run."""
    return ()
