"""The stores that a node's service holds open in its state folder."""

from dataclasses import dataclass

from apiary.blobs import BlobStore
from apiary_edge.samples.store import SampleStore
from apiary_edge.transfer.outbox import Outbox


@dataclass(frozen=True, slots=True)
class NodeStores:
    """`samples` is None where the node has neither a camera nor pictures in a store."""

    blobs: BlobStore
    outbox: Outbox
    samples: SampleStore | None = None
