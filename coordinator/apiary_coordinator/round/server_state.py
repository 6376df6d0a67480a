"""What a round starts from, what it promises to the nodes, and what it leaves to the next."""

from dataclasses import dataclass
from typing import Any

from apiary.learn.manifest import Manifest
from apiary.tensors import Shapes, Weights
from apiary.wire import Digest
from apiary.wire.messages import BlobRef, Bounds, Plan, RoundResult
from apiary_coordinator.model.builder import ExportedModel


@dataclass(frozen=True, slots=True)
class SentModel:
    """What nodes train on, where the server rule sends another model than the one that is judged."""

    weights: Weights
    model: BlobRef


@dataclass(slots=True)
class ServerState:
    """The model, and the server rule's state, that the next round starts from."""

    exported: ExportedModel
    manifest: Manifest
    weights: Weights
    model: BlobRef
    strategy_state: Digest | None
    """A blob of weights; None where the server rule has no state, or before the first round."""
    sent: SentModel | None = None
    """Made of the two above; None where nodes train on the model itself."""

    @property
    def train_on(self) -> BlobRef:
        """The model that nodes train on."""
        return self.sent.model if self.sent is not None else self.model

    @property
    def train_from(self) -> Weights:
        """Its weights: what updates are relative to."""
        return self.sent.weights if self.sent is not None else self.weights

    @property
    def files(self) -> list[BlobRef]:
        """What a node needs to predict, and, where it trains on the model itself, to train."""
        return [self.model, *self.exported.files]

    @property
    def training_files(self) -> list[BlobRef]:
        """What a node needs to train, and the model that it may predict with meanwhile."""
        return [*self.files, *([self.sent.model] if self.sent is not None else [])]


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """What a round's announcement promises; `bits` is the grid of its exact sum."""

    plan: Plan
    bounds: Bounds
    deadline_s: float
    shapes: Shapes
    bits: int


@dataclass(frozen=True, slots=True)
class NextModel:
    """What a round made: the weights, their blob, the server rule's new state, and what it sends next."""

    weights: Weights
    model: BlobRef
    strategy_state: Digest | None
    median_norm: float = 0.0
    """Of the updates that it was made of: the next round's bound follows from it."""
    sent: SentModel | None = None


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A round that is over; `made` is None where it failed. `details` are for the history alone."""

    result: RoundResult
    details: dict[str, Any]
    made: NextModel | None = None
