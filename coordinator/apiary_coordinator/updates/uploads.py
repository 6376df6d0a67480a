"""Which updates may be sent now: a bounded number at once, resumable, none forgotten.

With everyone sending at once a broker's queue overflows and loses messages in silence (measured: of 1000
acknowledged uploads 13 arrived); with ten granted at a time all 1000 did. `capacity.py` decides how many.
What has come whole gives its place on the wire to the next, so that no node waits for the disk; as many
again may wait there to be screened.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from apiary.wire import Digest, NodeId
from apiary.wire.chunks import Assembly
from apiary.wire.messages import Offer

MAX_STALLS: Final = 3
"""A granted upload that stalls this often in a row goes back into the queue, so that others get its place."""
SLICES: Final = 20
"""While others wait an upload brings this part of itself in each `MAX_STALLS` idle times, or goes back too.

A chunk now and then is no stall, and would keep its place for as long as the round is open.
"""


@dataclass(slots=True)
class Upload:
    """One node's update on its way."""

    node: NodeId
    offer: Offer
    assembly: Assembly
    heard_at: float = 0.0
    stalls: int = 0
    slice_at: float = field(default=0.0, init=False)
    slice_had: int = field(default=0, init=False)
    """When its present slice began, and how many chunks it had then."""
    slot: int = -1
    """Where the shell keeps its bytes; -1 before the first grant."""
    suspect: bool = False
    """It came damaged once: each of its chunks is verified from then on, not the whole again and again."""

    @property
    def digest(self) -> Digest:
        """The update's name."""
        return self.assembly.digest


class Uploads:
    """The queue of one round. At most one upload a node; a new offer with another digest replaces the old.

    What a method returns is granted now: its node is to be asked for the chunks that are missing.

    At most `max_active` are on their way at once, and at most as many more have come and are not finished.
    """

    def __init__(self, max_active: int, idle_s: float):
        self._max_active = max_active
        self._idle_s = idle_s
        self._waiting: OrderedDict[NodeId, Upload] = OrderedDict()
        self._active: dict[NodeId, Upload] = {}
        self._coming: set[NodeId] = set()
        """Of the active ones those with chunks on their way."""
        self._look_at = 0.0
        """No upload can have stalled before that."""

    @property
    def active(self) -> int:
        """Uploads granted and not finished."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Uploads offered and not granted."""
        return len(self._waiting)

    def offered(self, node: NodeId, offer: Offer, now: float) -> list[Upload]:
        """An offer came. A repeated one means that the node lost our grant: it gets one again."""
        known = self._active.get(node) or self._waiting.get(node)
        if known is not None and known.digest == offer.update.digest:
            if node not in self._coming:
                return self.freed(now)
            # Its node is there; but only chunks keep a place.
            return self._stalled(known, now) + self.freed(now)
        self.drop(node)
        self._waiting[node] = Upload(node, offer, Assembly(Digest(offer.update.digest), offer.update.bytes))
        return self.freed(now)

    def has(self, upload: Upload) -> bool:
        """Whether this upload is under way, or waits for its turn."""
        return self._active.get(upload.node) is upload or self._waiting.get(upload.node) is upload

    def receiving(self, node: NodeId, digest: str) -> Upload | None:
        """The granted upload that a chunk belongs to; None where none was granted.

        `digest` may be the beginning of it only.
        """
        upload = self._active.get(node)
        return upload if upload is not None and upload.digest.startswith(digest) else None

    def came(self, upload: Upload, now: float) -> None:
        """A chunk of it came that was missing: it is alive."""
        upload.heard_at = now
        upload.stalls = 0

    def superseded(self, node: NodeId, digest: Digest) -> Upload | None:
        """Forget a node's upload of anything but `digest`; the caller frees its room."""
        known = self._active.get(node) or self._waiting.get(node)
        return self.drop(node) if known is not None and known.digest != digest else None

    def drop(self, node: NodeId) -> Upload | None:
        """Forget a node's upload: it is finished, refused, or the node left for good."""
        self._coming.discard(node)
        return self._active.pop(node, None) or self._waiting.pop(node, None)

    def arrived(self, upload: Upload, now: float) -> list[Upload]:
        """All of a granted upload has come: its place is another's."""
        self._coming.discard(upload.node)
        return self.freed(now)

    def again(self, upload: Upload, chunks: Sequence[int], now: float) -> list[Upload]:
        """These chunks must come once more, or all where none is named: it is the next that gets a place.

        Nothing where the node has offered another update since.
        """
        upload.suspect = True
        for index in chunks:
            upload.assembly.lost(index)
        if not chunks:
            upload.assembly.forget()
        if self._active.get(upload.node) is upload:
            self.drop(upload.node)
            self._waiting[upload.node] = upload
            self._waiting.move_to_end(upload.node, last=False)
        return self.freed(now)

    def tick(self, now: float) -> list[Upload]:
        """Ask stalled uploads for what is missing; after `MAX_STALLS` others go first."""
        if now < self._look_at:
            return self.freed(now)
        again: list[Upload] = []
        for node in [n for n in self._active if n in self._coming]:
            upload = self._active[node]
            if self._drips(upload, now):
                self._back(upload)
            elif now - upload.heard_at >= self._idle_s:
                again += self._stalled(upload, now)
        # Who is granted later, or heard of, cannot have stalled before.
        self._look_at = min((self._active[n].heard_at for n in self._coming), default=now) + self._idle_s
        return again + self.freed(now)

    def _stalled(self, upload: Upload, now: float) -> list[Upload]:
        """Grant it again, or let others go first."""
        upload.stalls += 1
        upload.heard_at = now
        if upload.stalls >= MAX_STALLS and self._waiting:
            self._back(upload)
            return []
        return [upload]

    def _drips(self, upload: Upload, now: float) -> bool:
        """Whether it keeps others waiting and brought next to nothing in the slice that is over."""
        if now - upload.slice_at < MAX_STALLS * self._idle_s:
            return False
        came = upload.assembly.received - upload.slice_had
        upload.slice_at, upload.slice_had = now, upload.assembly.received
        return bool(self._waiting) and came * SLICES < upload.assembly.chunks

    def _back(self, upload: Upload) -> None:
        """To the end of the queue; what has come of it stays."""
        upload.stalls = 0
        self.drop(upload.node)
        self._waiting[upload.node] = upload

    def freed(self, now: float) -> list[Upload]:
        """Grant what the free places allow."""
        grants: list[Upload] = []
        most = self._max_active
        while self._waiting and len(self._coming) < most and len(self._active) < 2 * most:
            node, upload = self._waiting.popitem(last=False)
            upload.heard_at = upload.slice_at = now
            upload.slice_had = upload.assembly.received
            self._active[node] = upload
            self._coming.add(node)
            grants.append(upload)
        return grants
