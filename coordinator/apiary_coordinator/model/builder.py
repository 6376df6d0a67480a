"""What a run needs of its model: built before the first round, evaluated after each, finished at the end."""

from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from apiary.learn.manifest import Manifest
from apiary.learn.metrics import Evaluation
from apiary.tensors import Weights
from apiary.wire.messages import BlobRef
from apiary_coordinator.model.warm_start import Ancestor


class ExportedModel(BaseModel):
    """What a run announces besides its newest model: digests of blobs that the store holds."""

    model_config = ConfigDict(frozen=True)

    labels: tuple[str, ...]
    manifest: BlobRef
    trainer: BlobRef | None
    base: BlobRef | None
    initial: BlobRef
    held_out: BlobRef | None = None
    """The held-out pictures by digest; None where there are none, or they are texts."""

    ancestor: Ancestor | None = None
    """The model that `initial` was made of; None where the run begins from scratch."""

    @property
    def files(self) -> list[BlobRef]:
        """What a node needs besides the weights."""
        refs = (self.manifest, self.trainer, self.base, self.held_out)
        return [ref for ref in refs if ref is not None]


class ModelBuilder(Protocol):
    """Slow work: all but `labels` is called on the worker's thread only."""

    def labels(self) -> tuple[str, ...]:
        """The labels that a model would have; refuses quickly what could not be built. Raises DataError."""

    def build(self, ancestor: Ancestor | None = None, weights: Weights | None = None) -> ExportedModel:
        """Export the recipe and put its files into the blob store. Raises ModelError, DataError.

        With an `ancestor` the first weights are its own, as far as labels are known: `weights`, or where they
        are None those of its file.
        """

    def manifest(self, exported: ExportedModel) -> Manifest:
        """Read the manifest of what was built."""

    def evaluate(self, exported: ExportedModel, weights: Weights) -> Evaluation:
        """Evaluate weights on held-out pictures, without TensorFlow. Raises DataError."""

    def finish(self, exported: ExportedModel, weights: Weights, folder: Path) -> dict[str, Any]:
        """Write the final model's files into `folder`; returns what the summary adds about them."""
