"""Blobs to the nodes: requests are gathered, then each chunk is published once for all who sent one."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from apiary.blobs import BlobStore
from apiary.bus.flow import ChunkFlow
from apiary.wire import Digest, NodeId
from apiary.wire.chunks import count, indices, ranges
from apiary.wire.messages import BlobRef, Want
from apiary.wire.topics import TopicKind, Topics

log = logging.getLogger(__name__)

FEW: Final = 10
"""While nearly no expected node has sent a request, more are waited for this many times `gather_s`; the
nearer to all, the nearer to once. After the first two wishes of 1000 nodes came a pause longer than that."""
LULL: Final = 0.5
"""A pause counts as the end only where it is this share of the time since the first wish: the more wishes
a broker and a coordinator have in hand, the more unevenly they come."""
GATHER_AT_MOST: Final = 100
"""Wishes that keep coming put a blob off by this many times `gather_s` in all. Whoever asks after a chunk was
published has it published for all who lack the blob: with 1000 nodes that asked within a second, each chunk
went out ten times and the broker held 5.6 GB (measured)."""


@dataclass(slots=True)
class _Gathering:
    """Wishes for one blob that were not answered yet; times are of the monotonic clock."""

    first: float
    due: float = 0.0
    wanted: set[int] = field(default_factory=set)
    nodes: set[NodeId] = field(default_factory=set)

    def put_off(self, now: float, expected: int, gather_s: float) -> None:
        """One more node has asked: wait for the next, but not for ever, and for none where all have."""
        if len(self.nodes) >= expected:
            self.due = now
            return
        left = 1 - len(self.nodes) / expected
        pause = max(gather_s * (1 + (FEW - 1) * left), LULL * (now - self.first))
        self.due = min(now + pause, self.first + GATHER_AT_MOST * gather_s)


class ModelServer:
    """The coordinator's side of `want`. Only blobs that were announced are served."""

    def __init__(self, topics: Topics, blobs: BlobStore, gather_s: float):
        self.flow = ChunkFlow()
        self._topics = topics
        self._blobs = blobs
        self._gather_s = gather_s
        self._served: dict[str, dict[Digest, int]] = {}
        self._expected: dict[str, int] = {}
        self._gathering: dict[Digest, _Gathering] = {}

    def serve(self, refs: list[BlobRef], expected: int, owner: str = "round") -> None:
        """From now on serve these blobs of `owner` and no others, to about `expected` nodes."""
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
        gathering = self._gathering.setdefault(digest, _Gathering(now))
        gathering.wanted.update(indices(want.missing, count(size)))
        if node not in gathering.nodes:
            gathering.nodes.add(node)
            gathering.put_off(now, self._expected[owner], self._gather_s)

    def due(self, now: float) -> None:
        """Queue what has waited long enough; the flow paces the rest."""
        for digest, gathering in list(self._gathering.items()):
            if now < gathering.due:
                continue
            del self._gathering[digest]
            wanted = ranges(sorted(gathering.wanted), limit=len(gathering.wanted))
            if (owner := self._owner(digest)) is not None:
                self.flow.add(
                    digest,
                    self._served[owner][digest],
                    wanted,
                    topic=partial(self._topic, digest),
                    read=partial(self._blobs.read_part, digest),
                )

    @property
    def idle(self) -> bool:
        """Whether nothing that was requested is still to be published."""
        return not self._gathering and self.flow.pending == 0

    def next_due(self) -> float | None:
        """When `due` has something to do at the latest."""
        return min((g.due for g in self._gathering.values()), default=None)

    def _owner(self, digest: Digest) -> str | None:
        return next((owner for owner, served in self._served.items() if digest in served), None)

    def _topic(self, digest: Digest, index: int) -> str:
        return self._topics.build(TopicKind.CHUNK_DOWN, digest=digest, index=index)
