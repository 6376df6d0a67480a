"""The models of one run in the blob store: verified, read, removed."""

from collections.abc import Container, Iterable

from apiary.blobs import BlobStore
from apiary.errors import RunFailed
from apiary.files import disk_errors
from apiary.tensors import Weights
from apiary.wire import Digest, blob
from apiary.wire.chunks import digest_of
from apiary.wire.messages import BlobRef
from apiary_coordinator.model.builder import ExportedModel


class Checkpoints:
    """The models of one run."""

    def __init__(self, run: str, blobs: BlobStore):
        self._run = run
        self._blobs = blobs

    def whole(self, exported: ExportedModel) -> bool:
        """Whether all that was built is there, and as it was. Raises StoreError."""
        return all(self._blobs.verify(Digest(ref.digest)) for ref in (*exported.files, exported.initial))

    def weights(self, digest: Digest) -> Weights:
        """A model. Raises RunFailed where no disk will give it back, StoreError where it may."""
        if not self._blobs.verify(digest):
            raise RunFailed(
                f"run {self._run} cannot go on: its model {digest[:12]} is damaged or gone from "
                f"{self._blobs.path(digest).parent}; restore the state folder from a backup, or begin "
                "another run (--new, apiary run start)"
            )
        return blob.decode(self._blobs.read(digest), who="the blob store").weights

    def prune(self, models: Iterable[str | None], keep: Container[str]) -> None:
        """Remove these models but for those to keep. Raises StoreError."""
        for model in models:
            if model and model not in keep:
                self._blobs.remove(Digest(model))


def keep(blobs: BlobStore, weights: Weights) -> BlobRef:
    """Keep a model; what is there already and damaged is written anew. Raises StoreError."""
    document = blob.encode(weights)
    blobs.verify(digest_of(document))
    return BlobRef(digest=blobs.put(document), bytes=len(document))


def model_ref(blobs: BlobStore, digest: Digest) -> BlobRef:
    """A model as messages name it. Raises StoreError."""
    with disk_errors(f"the model {digest[:12]} cannot be read"):
        return BlobRef(digest=digest, bytes=blobs.path(digest).stat().st_size)
