"""The models of a run in the blob store: read, looked after, removed."""

from __future__ import annotations

from collections.abc import Container, Iterable

from apiary.blobs import BlobStore
from apiary.errors import RunFailed
from apiary.tensors import Weights
from apiary.wire import Digest, blob
from apiary_coordinator.model.builder import ExportedModel


class Checkpoints:
    """What one run has there."""

    def __init__(self, run: str, blobs: BlobStore):
        self._run = run
        self._blobs = blobs

    def whole(self, artefacts: ExportedModel) -> bool:
        """Whether all that was built is there, and as it was. Raises StoreError."""
        refs = (artefacts.manifest, artefacts.trainer, artefacts.base, artefacts.initial)
        return all(self._blobs.verify(Digest(ref.digest)) for ref in refs if ref is not None)

    def weights(self, digest: Digest) -> Weights:
        """A model. Raises RunFailed where no disk will give it back, StoreError where it may."""
        if not self._blobs.verify(digest):
            raise RunFailed(
                f"run {self._run} cannot go on: its model {digest[:12]} is damaged or gone from "
                f"{self._blobs.path(digest).parent}; restore the state folder from a backup, or begin "
                "another run (--new, apiary run start)"
            )
        return blob.decode(self._blobs.read(digest), who="the blob store").weights

    def prune(self, made: Iterable[str | None], keep: Container[str]) -> None:
        """Remove what rounds have made, but for what is to be kept. Raises StoreError."""
        for model in made:
            if model and model not in keep:
                self._blobs.remove(Digest(model))
