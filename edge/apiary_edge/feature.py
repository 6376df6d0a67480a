"""A part of the node beside training: camera, health, releases, commands. `Edge` calls each on its loop."""

from collections.abc import Mapping
from typing import Any, Protocol

from apiary.service import Feature
from apiary.wire import Digest
from apiary.wire.messages import Announcement
from apiary_edge.training.session import Session
from apiary_edge.training.supervisor import TrainingSupervisor


class Rounds(Protocol):
    """The node's part in rounds, for features that look at it or act on it; `Edge` is one."""

    session: Session
    training: TrainingSupervisor

    @property
    def samples(self) -> int:
        """Pictures that it may train on."""

    @property
    def busy(self) -> bool:
        """Whether a round takes the node's time, or something holds it from training."""

    def hold(self, who: str, why: str | None) -> None:
        """Begin no training for this reason, until the same `who` takes it back with None."""

    def leave(self) -> None:
        """Leave the round in hand as if it had not been announced."""

    def is_over(self, run: str, number: int) -> bool:
        """Whether a round takes no update any more, by what this node has received."""

    def forget(self) -> None:
        """Let the round that was answered or declined last be trained again."""


class NodeFeature(Feature):
    """A part of the node beside training."""

    def announced(self, announcement: Announcement) -> None:
        """A round was announced that is not out of date, whether for this node or not."""

    def fetched(self, digest: Digest) -> None:
        """A blob is here, whole, whoever asked for it."""

    def disconnected(self, why: str) -> None:
        """The link is gone, or an attempt failed; the next attempt comes by itself."""

    def keeps(self) -> set[Digest]:
        """Blobs that must not be evicted."""
        return set()

    def unfit(self, announcement: Announcement) -> str | None:
        """Why this node cannot take part in a round, before anything is fetched; None: it can."""
        return None

    def status(self) -> Mapping[str, Any]:
        """Fields that it adds to the node's status."""
        return {}
