"""What a run needs besides the bus: a model to train, a judge of it, and its final files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from apiary.learn.manifest import Manifest
from apiary.tensors import Weights
from apiary.wire.messages import BlobRef


class ExportedModel(BaseModel):
    """What a run announces besides its model: digests of blobs that the store holds."""

    model_config = ConfigDict(frozen=True)

    labels: tuple[str, ...]
    manifest: BlobRef
    trainer: BlobRef | None
    base: BlobRef | None
    initial: BlobRef


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on the server's held-out pictures; `details` are JSON for the history."""

    accuracy: float
    loss: float
    details: dict[str, Any]


class ModelBuilder(Protocol):
    """Slow work, called on the worker's thread only but for `check`."""

    def check(self) -> None:
        """Refuse quickly what could not be built: called on the loop. Raises DataError."""
        ...

    def build(self) -> ExportedModel:
        """Export the recipe and put its files into the blob store. Raises ModelError, DataError."""
        ...

    def manifest(self, artefacts: ExportedModel) -> Manifest:
        """The manifest of what was built."""
        ...

    def evaluate(self, artefacts: ExportedModel, weights: Weights) -> Evaluation:
        """Judge weights on held-out pictures, without TensorFlow."""
        ...

    def finish(self, artefacts: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        """Write the final model's files into `folder`; what the summary should say of them."""
        ...
