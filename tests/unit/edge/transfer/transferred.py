"""What goes between node and coordinator in tests of the disk: bytes, their download, an update's offer."""

from __future__ import annotations

from apiary.blobs import BlobStore
from apiary.wire.chunks import count, digest_of, encode, span
from apiary.wire.messages import BlobRef, Offer, TrainMetrics

DATA = bytes(range(251)) * 1500

DIGEST = digest_of(DATA)


def download_all(store: BlobStore) -> None:
    download = store.begin(DIGEST, len(DATA))
    for i in range(count(len(DATA))):
        start, end = span(i, len(DATA))
        download.accept(i, encode(DIGEST, i, DATA[start:end]))
    if not download.finish():
        raise AssertionError


def offer(data: bytes, number: int) -> Offer:
    ref = BlobRef(digest=digest_of(data), bytes=len(data))
    return Offer(
        run="r", round=number, update=ref, codec="raw_f32", samples=5, metrics=TrainMetrics(loss=1.0)
    )
