"""What a round starts from, what it works with, and what it leaves to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from apiary.blobs import BlobStore
from apiary.bus.bus import BrokerLimits
from apiary.bus.outlet import Outlet
from apiary.errors import StoreError
from apiary.learn.manifest import Manifest
from apiary.plugins import load
from apiary.settings import Settings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.messages import BlobRef, RoundResult
from apiary_coordinator.journal import Journal
from apiary_coordinator.model.builder import ExportedModel, ModelBuilder
from apiary_coordinator.strategies.base import Strategy
from apiary_coordinator.worker import Worker


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A round that is over; without weights where it failed."""

    result: RoundResult
    details: dict[str, Any]
    weights: Weights | None = None
    model: Digest | None = None
    state: Digest | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a round works with and whom it tells."""

    settings: Settings
    artefacts: ExportedModel
    manifest: Manifest
    weights: Weights
    model: BlobRef
    state: Weights
    blobs: BlobStore
    run: str
    journal: Journal
    worker: Worker
    outlet: Outlet
    workshop: ModelBuilder
    clock: Callable[[], float]
    limits: Callable[[], BrokerLimits]
    announce: Callable[[], None]
    invite: Callable[[NodeId], None]
    closed: Callable[[ClosedRound], None]


@dataclass(slots=True)
class ServerState:
    """The model and strategy state that the next round starts from."""

    settings: Settings
    artefacts: ExportedModel
    manifest: Manifest
    weights: Weights
    model: Digest
    state: Digest | None
    blobs: BlobStore

    @property
    def model_ref(self) -> BlobRef:
        """The current model as a blob. Raises StoreError."""
        try:
            size = self.blobs.path(self.model).stat().st_size
        except OSError as e:
            raise StoreError(f"the model {self.model[:12]} cannot be read: {e.strerror}") from e
        return BlobRef(digest=self.model, bytes=size)

    def advance(self, weights: Weights, model: Digest, state: Digest | None) -> None:
        """A round was closed."""
        self.weights, self.model, self.state = weights, model, state

    def parts(self, **rest: Any) -> Parts:
        """The parts of the next round."""
        if self.state is None:
            state = strategy(self.settings).init(self.weights)
        else:
            state = blob.decode(self.blobs.read(self.state), who="the journal").weights
        return Parts(
            self.settings,
            self.artefacts,
            self.manifest,
            self.weights,
            self.model_ref,
            state,
            self.blobs,
            **rest,
        )


def strategy(settings: Settings) -> Strategy:
    """The strategy that the settings name. Raises SettingsError."""
    return cast("Strategy", load("apiary_coordinator.strategies", settings.run.strategy))
