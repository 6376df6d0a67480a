"""A part of the coordinator beside the run: releases, operators, metrics; called on its loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from apiary.blobs import BlobStore
from apiary.bus.bus import Bus, Received
from apiary.bus.outlet import Outlet
from apiary.settings import Settings
from apiary.wire.topics import Topic, TopicKind, Topics
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


class Feature:
    """Does nothing; a feature overrides what it needs. WireError and StoreError are logged, nothing more.

    No call may block the loop: what takes longer than some milliseconds is given to the desk's worker.
    """

    kinds: tuple[TopicKind, ...] = ()
    """Topics that it takes, of all nodes or operators."""

    def start(self, now: float) -> None:
        """The coordinator starts; before the first connect."""

    def received(self, topic: Topic, event: Received) -> None:
        """A message on a topic of `kinds`."""

    def connected(self) -> None:
        """The link is new; retained state was said again already."""

    def tick(self, now: float) -> None:
        """A turn of the loop, at least twice a second."""

    def finished(self, folder: Path) -> None:
        """A run's result lies in `folder`, reported and published. On the worker's thread; must not raise."""

    def close(self) -> None:
        """The coordinator stops."""


Features = Callable[[Desk], Sequence[Feature]]


def no_features(desk: Desk) -> Sequence[Feature]:
    """A coordinator that only runs its run."""
    return ()
