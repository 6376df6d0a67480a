"""A part of the node beside training: camera, health, releases, commands. `Edge` calls each on its loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apiary.blobs import BlobStore
from apiary.bus.bus import Bus, Received
from apiary.bus.outlet import Outlet
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Announcement
from apiary.wire.topics import Topic, TopicKind, Topics
from apiary_edge.training.session import Session
from apiary_edge.training.supervisor import TrainingSupervisor
from apiary_edge.transfer.downloads import Downloads


@dataclass(frozen=True, slots=True)
class Link:
    """What every part of one node works with. `clock` is monotonic, `wall` seconds since 1970.

    `hold(who, why)` keeps the node from beginning to train until the same `who` says `hold(who, None)`;
    `training` is what it trains already. `samples` are the pictures that it may train on. `leave` leaves the
    round in hand as if it had not been announced; `over` says whether a round takes no update any more, by
    what this node has heard; `forget` lets the last answered round be trained again.
    `make_room` evicts blobs that no part of the node keeps, before something is fetched.
    """

    node: NodeId
    bus: Bus
    topics: Topics
    outlet: Outlet
    blobs: BlobStore
    downloads: Downloads
    make_room: Callable[[], None]
    clock: Callable[[], float]
    wall: Callable[[], float]
    hold: Callable[[str, str | None], None]
    training: TrainingSupervisor
    samples: Callable[[], int]
    session: Callable[[], Session]
    leave: Callable[[], None]
    over: Callable[[str, int], bool]
    forget: Callable[[], None]


class Feature:
    """Does nothing; a feature overrides what it needs. WireError and StoreError are logged, nothing more.

    No call may block the loop: what takes longer than some milliseconds belongs into a child process.
    """

    kinds: tuple[TopicKind, ...] = ()
    """Topics that it takes: those of this node, or those for all."""

    def start(self, now: float) -> None:
        """The node starts; before the first connect."""

    def received(self, topic: Topic, event: Received) -> None:
        """A message on a topic of `kinds`."""

    def announced(self, told: Announcement) -> None:
        """A round was announced that is not out of date, whether for this node or not."""

    def fetched(self, digest: Digest) -> None:
        """A blob is here, whole, whoever asked for it."""

    def connected(self) -> None:
        """The link is new: what was said last may not have arrived."""

    def disconnected(self, why: str) -> None:
        """The link is gone, or an attempt failed; the next attempt comes by itself."""

    def tick(self, now: float) -> None:
        """A turn of the loop, at least twice a second."""

    def close(self) -> None:
        """The node stops: end children, say goodbye."""

    def keeps(self) -> set[Digest]:
        """Blobs that must not be evicted."""
        return set()

    def unfit(self, told: Announcement) -> str | None:
        """Why this node cannot take part in a round, asked before anything is fetched; None: it can."""
        return None

    def status(self) -> Mapping[str, Any]:
        """Fields that it adds to the node's status."""
        return {}


Features = Callable[[Link], Sequence[Feature]]


def no_features(link: Link) -> Sequence[Feature]:
    """A node that only trains."""
    return ()
