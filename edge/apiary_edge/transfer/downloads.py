"""Blobs that the node lacks: subscribe, say which chunks are missing, put them together, say it again."""

from __future__ import annotations

import logging
from typing import Final

from apiary.blobs import BlobStore, Download
from apiary.bus.bus import Bus
from apiary.bus.outlet import Outlet
from apiary.errors import StoreError
from apiary.wire import Digest, NodeId
from apiary.wire.messages import BlobRef, Want
from apiary.wire.topics import TopicKind, Topics

log = logging.getLogger(__name__)

MAX_PAUSE: Final = 8
"""A wish without an answer is repeated after the idle time, twice that, and so on, up to this many times."""
GAPS: Final = 4
"""Nothing is asked for again before this many times the longest pause between two chunks of the blob: on a
slow link the rest is on its way, and asking would double it."""


class Downloads:
    """At most one download a blob, whoever wants it; chunks come in any order, also when others asked."""

    def __init__(
        self, node: NodeId, *, bus: Bus, topics: Topics, outlet: Outlet, blobs: BlobStore, idle_s: float
    ):
        self._node = node
        self._bus = bus
        self._topics = topics
        self._outlet = outlet
        self._blobs = blobs
        self._idle_s = idle_s
        self._going: dict[Digest, Download] = {}
        self._owners: dict[Digest, set[str]] = {}
        self._heard_at = 0.0
        self._gap = 0.0
        self._unanswered: dict[Digest, int] = {}
        self._spoiled: dict[Digest, int] = {}

    def fetch(self, ref: BlobRef, now: float, owner: str = "round") -> None:
        """Start to get a blob for `owner`. Raises StoreError where there is no room for it."""
        digest = Digest(ref.digest)
        self._owners.setdefault(digest, set()).add(owner)
        if digest in self._going:
            return
        try:
            download = self._blobs.begin(digest, ref.bytes)
        except StoreError:
            del self._owners[digest]
            raise
        self._going[digest] = download
        self._bus.subscribe(self._topics.pattern(TopicKind.CHUNK_DOWN, digest=digest))
        self._want(download, now)

    def chunk(self, digest: Digest, index: int, payload: bytes, now: float) -> Digest | None:
        """Take a chunk; the digest where its blob is now whole. Raises ChunkError and StoreError."""
        download = self._going.get(digest)
        if download is None:
            return None
        if download.accept(index, payload):
            # Chunks of several blobs share one link: while any comes, the others wait for their turn.
            self._gap = max(self._gap, now - max(download.heard_at, self._heard_at))
            self._heard_at = now
        if not download.assembly.complete:
            return None
        if not download.finish():
            self._spoiled[digest] = self._spoiled.get(digest, 0) + 1
            log.warning("blob=%s did not give its digest; fetching it again", digest[:12])
            self._want(download, now)
            return None
        del self._going[digest], self._owners[digest]
        self._spoiled.pop(digest, None)
        self._unanswered.pop(digest, None)
        self._bus.unsubscribe(self._topics.pattern(TopicKind.CHUNK_DOWN, digest=digest))
        return digest

    def spoiled(self, digest: Digest) -> int:
        """How often a blob that is being fetched was whole and did not give its digest."""
        return self._spoiled.get(digest, 0)

    def tick(self, now: float) -> None:
        """Ask again where nothing has come for a while."""
        for digest, download in self._going.items():
            asked = self._unanswered.get(digest, 0)
            pause = max(
                self._idle_s * min(2**asked, MAX_PAUSE), min(GAPS * self._gap, MAX_PAUSE * self._idle_s)
            )
            if now - max(download.heard_at, self._heard_at) >= pause:
                self._unanswered[digest] = asked + 1
                self._want(download, now)

    def again(self, now: float) -> None:
        """The link or the coordinator is new: ask for what is missing."""
        self._unanswered.clear()
        self._gap = 0.0
        for download in self._going.values():
            self._want(download, now)

    def abandon(self, owner: str | None = None) -> None:
        """Stop those that only `owner` wanted, or all of them."""
        for digest in list(self._going):
            owners = self._owners[digest]
            owners.discard(owner or "")
            if owner is not None and owners:
                continue
            self._going.pop(digest).abandon()
            self._bus.unsubscribe(self._topics.pattern(TopicKind.CHUNK_DOWN, digest=digest))
            self._unanswered.pop(digest, None)
            self._spoiled.pop(digest, None)
            del self._owners[digest]

    def _want(self, download: Download, now: float) -> None:
        download.heard_at = now
        missing = download.assembly.missing()
        self._outlet.send(Want(digest=download.assembly.digest, missing=missing), self._node)
