"""Blobs to the nodes: wishes are gathered, then each chunk is published once for all who asked."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from apiary.blobs import BlobStore
from apiary.bus.flow import ChunkFlow
from apiary.wire import Digest, NodeId
from apiary.wire.chunks import count, indices, ranges
from apiary.wire.messages import BlobRef, Want
from apiary.wire.topics import Kind, Topics

log = logging.getLogger(__name__)

GATHER_AT_MOST: Final = 20
"""Wishes that keep coming put a blob off by this many times `gather_s` in all. Whoever asks after a chunk was
published has it published for all who lack the blob: with 1000 nodes that asked over a second, each chunk
went out ten times and the broker held 5.6 GB (measured)."""


class Downlink:
    """The coordinator's side of `want`. Only blobs that were announced are served."""

    def __init__(self, topics: Topics, blobs: BlobStore, flow: ChunkFlow, gather_s: float):
        self._topics = topics
        self._blobs = blobs
        self._flow = flow
        self._gather_s = gather_s
        self._served: dict[str, dict[Digest, int]] = {}
        self._wanted: dict[Digest, set[int]] = {}
        self._asked: dict[Digest, set[NodeId]] = {}
        self._expected: dict[str, int] = {}
        self._due: dict[Digest, float] = {}
        self._latest: dict[Digest, float] = {}

    def serve(self, refs: list[BlobRef], expected: int, owner: str = "round") -> None:
        """Of `owner` these blobs and no others may be asked for from now on, by about `expected` nodes."""
        self._expected[owner] = expected
        self._served[owner] = {Digest(ref.digest): ref.bytes for ref in refs}

    def want(self, node: NodeId, want: Want, now: float) -> None:
        """A node lacks chunks."""
        digest = Digest(want.digest)
        owner = self._owner(digest)
        if owner is None:
            log.debug("node=%s wants blob=%s, which nobody offers", node, digest[:12])
            return
        size = self._served[owner][digest]
        self._wanted.setdefault(digest, set()).update(indices(want.missing, count(size)))
        asked = self._asked.setdefault(digest, set())
        latest = self._latest.setdefault(digest, now + GATHER_AT_MOST * self._gather_s)
        if node not in asked:
            self._due[digest] = min(now + self._gather_s, latest)
        asked.add(node)
        if len(asked) >= self._expected[owner]:
            self._due[digest] = now  # everyone has asked: nothing to wait for

    def due(self, now: float) -> None:
        """Queue what has waited long enough; the flow paces the rest."""
        for digest, due in list(self._due.items()):
            if now < due:
                continue
            del self._due[digest], self._asked[digest], self._latest[digest]
            wanted = ranges(sorted(self._wanted.pop(digest)), limit=2**31)
            if (owner := self._owner(digest)) is not None:
                self._flow.add(
                    digest,
                    self._served[owner][digest],
                    wanted,
                    topic=partial(self._topic, digest),
                    read=partial(self._blobs.read_part, digest),
                )

    def next_due(self) -> float | None:
        """When `due` has something to do at the latest."""
        return min(self._due.values(), default=None)

    def _owner(self, digest: Digest) -> str | None:
        return next((owner for owner, served in self._served.items() if digest in served), None)

    def _topic(self, digest: Digest, index: int) -> str:
        return self._topics.build(Kind.CHUNK_DOWN, digest=digest, index=index)
