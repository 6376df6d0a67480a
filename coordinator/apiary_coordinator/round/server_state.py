"""What a round starts from, what it promises to the nodes, and what it leaves to the next."""

from dataclasses import dataclass
from typing import Any

from apiary.learn.manifest import Manifest
from apiary.tensors import Shapes, Weights
from apiary.wire import Digest
from apiary.wire.messages import BlobRef, Bounds, Plan, RoundResult
from apiary_coordinator.model.builder import ExportedModel


@dataclass(slots=True)
class ServerState:
    """The model, and the strategy's state, that the next round starts from."""

    exported: ExportedModel
    manifest: Manifest
    weights: Weights
    model: BlobRef
    strategy_state: Digest | None
    """A blob of weights; None where the strategy has no state, or before the first round."""

    @property
    def files(self) -> list[BlobRef]:
        """What a node needs to train or to predict."""
        return [self.model, *self.exported.files]


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
    """What a round made: the weights, their blob, and the strategy's new state."""

    weights: Weights
    model: BlobRef
    strategy_state: Digest | None
    median_norm: float = 0.0
    """Of the updates that it was made of: the next round's bound follows from it."""


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A round that is over; `made` is None where it failed. `details` are for the history alone."""

    result: RoundResult
    details: dict[str, Any]
    made: NextModel | None = None
