"""Blobs that the node lacks: subscribe, request the missing chunks, assemble them, request again."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from apiary.blobs import BlobStore, Download
from apiary.wire import Digest
from apiary.wire.messages import BlobRef, Want
from apiary.wire.topics import TopicKind
from apiary_edge.transfer.channel import NodeChannel

log = logging.getLogger(__name__)

MAX_PAUSE: Final = 8
"""An unanswered request is repeated after the idle time, twice that, and so on, up to this many times it."""
GAPS: Final = 4
"""Nothing is requested again before this many times the longest pause between two chunks of the blob: on a
slow link the rest is on its way, and another request would double it."""


@dataclass(slots=True)
class _Fetch:
    """A download, who wants it, when it was asked for, and how often it went unanswered or came spoiled."""

    download: Download
    owners: set[str]
    asked_at: float
    unanswered: int = 0
    spoiled: int = 0


class Downloads:
    """At most one download a blob, whoever wants it; chunks come in any order, also if others requested them.

    `keeps` gives the blobs that must stay when others are evicted to make room.
    """

    def __init__(
        self, channel: NodeChannel, blobs: BlobStore, *, idle_s: float, keeps: Callable[[], set[Digest]]
    ):
        self.blobs = blobs
        self._channel = channel
        self._idle_s = idle_s
        self._keeps = keeps
        self._going: dict[Digest, _Fetch] = {}
        self._heard_at = 0.0
        self._gap = 0.0

    def fetch(self, ref: BlobRef, now: float, owner: str = "round") -> None:
        """Make room for a blob and start to get it for `owner`. Raises StoreError where it does not fit."""
        digest = Digest(ref.digest)
        if (going := self._going.get(digest)) is not None:
            going.owners.add(owner)
            return
        self.blobs.evict(keep=self._keeps())
        fetch = _Fetch(self.blobs.begin(digest, ref.bytes), {owner}, now)
        self._going[digest] = fetch
        self._channel.bus.subscribe(self._pattern(digest))
        self._want(fetch, now)

    def chunk(self, digest: Digest, index: int, payload: bytes, now: float) -> Digest | None:
        """Take a chunk; the digest where its blob is now whole. Raises ChunkError and StoreError."""
        fetch = self._going.get(digest)
        if fetch is None:
            return None
        download = fetch.download
        if download.accept(index, payload):
            # Chunks of several blobs share one link: while any comes, the others wait for their turn.
            self._gap = max(self._gap, now - max(fetch.asked_at, self._heard_at))
            self._heard_at = now
        if not download.assembly.complete:
            return None
        if not download.finish():
            fetch.spoiled += 1
            log.warning("blob=%s did not give its digest; fetching it again", digest[:12])
            self._want(fetch, now)
            return None
        del self._going[digest]
        self._channel.bus.unsubscribe(self._pattern(digest))
        return digest

    def spoiled(self, digest: Digest) -> int:
        """How often a blob that is being fetched was whole and did not give its digest."""
        fetch = self._going.get(digest)
        return fetch.spoiled if fetch is not None else 0

    def tick(self, now: float) -> None:
        """Request again where nothing has come for a while."""
        for fetch in self._going.values():
            idle_s = self._idle_s * min(2**fetch.unanswered, MAX_PAUSE)
            pause = max(idle_s, min(GAPS * self._gap, MAX_PAUSE * self._idle_s))
            if now - max(fetch.asked_at, self._heard_at) >= pause:
                fetch.unanswered += 1
                self._want(fetch, now)

    def again(self, now: float) -> None:
        """The connection or the coordinator is new: request what is missing."""
        self._gap = 0.0
        for fetch in self._going.values():
            fetch.unanswered = 0
            self._want(fetch, now)

    def abandon(self, owner: str | None = None) -> None:
        """Stop those that only `owner` wanted, or all of them."""
        for digest, fetch in list(self._going.items()):
            if owner is not None:
                fetch.owners.discard(owner)
                if fetch.owners:
                    continue
            self._going.pop(digest).download.abandon()
            self._channel.bus.unsubscribe(self._pattern(digest))

    def _want(self, fetch: _Fetch, now: float) -> None:
        fetch.asked_at = now
        assembly = fetch.download.assembly
        self._channel.send(Want(digest=assembly.digest, missing=assembly.missing()))

    def _pattern(self, digest: Digest) -> str:
        return self._channel.topics.pattern(TopicKind.CHUNK_DOWN, digest=digest)
