"""An update's chunks on their way out of the outbox, and what the disk did not give back."""

import logging
from functools import partial

from apiary.bus.flow import ChunkFlow
from apiary.errors import StoreError
from apiary.wire import Digest
from apiary.wire.chunks import Ranges
from apiary.wire.messages import Offer
from apiary.wire.topics import TopicKind
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.outbox import Outbox

log = logging.getLogger(__name__)


class UpdateUpload:
    """Feeds granted chunks to the bus, at most `window` unacknowledged at once."""

    def __init__(self, channel: NodeChannel, outbox: Outbox, window: int):
        self.window = window
        self.one_topic = False
        """Whether this coordinator takes chunks on one topic: its latest grant says so."""
        self._node = channel.node
        self._channel = channel
        self._outbox = outbox
        self._flow = ChunkFlow()
        self._unreadable: Digest | None = None

    def add(self, offer: Offer, missing: Ranges) -> None:
        """Send these chunks of the update."""
        digest = Digest(offer.update.digest)
        self._flow.add(
            digest,
            offer.update.bytes,
            missing,
            topic=partial(self._topic, digest),
            read=partial(self._read, digest),
            patient=True,
        )

    def pump(self) -> None:
        """Publish what the bus takes. Raises StoreError; then `unreadable` names the update."""
        self._flow.pump(self._channel.bus, self.window)

    def unreadable(self) -> Digest | None:
        """The update that could not be read since the last call."""
        digest, self._unreadable = self._unreadable, None
        return digest

    def answered(self, offer: Offer, state: str, why: str | None) -> None:
        """The update has its receipt: note its round as done, and remove it from the outbox."""
        level = logging.INFO if state in ("accepted", "duplicate") else logging.WARNING
        more = f": {why}" if why else ""
        log.log(level, "node=%s round=%d update %s%s", self._node, offer.round, state, more)
        # Done before it is removed: after a power cut between the two the update is only offered once more.
        self._outbox.set_done(offer.run, offer.round)
        self._remove(offer)

    def discard(self, offer: Offer) -> None:
        """The update cannot be read: remove it, its round is not done."""
        log.error("node=%s round=%d the update cannot be read; it is trained again", self._node, offer.round)
        self._remove(offer)

    def _remove(self, offer: Offer) -> None:
        digest = Digest(offer.update.digest)
        self._flow.cancel(digest)
        self._outbox.remove(digest)

    def clear(self) -> None:
        """The connection is gone, and what was on its way with it."""
        self._flow.clear()

    def _topic(self, digest: Digest, index: int) -> str:
        if self.one_topic:
            return self._channel.topics.build(TopicKind.UPLOAD, node=self._node)
        return self._channel.topics.build(TopicKind.CHUNK_UP, node=self._node, digest=digest, index=index)

    def _read(self, digest: Digest, offset: int, length: int) -> bytes:
        try:
            return self._outbox.read_part(digest, offset, length)
        except StoreError:
            self._unreadable = digest
            raise
