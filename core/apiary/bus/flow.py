"""Feeding many chunks to the bus, a few at a time and fairly, so that its queue stays short."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from apiary.bus.bus import Bus
from apiary.errors import StoreError
from apiary.wire import Digest
from apiary.wire.chunks import Ranges, count, encode, indices, span

Read = Callable[[int, int], bytes | memoryview]
"""`read(offset, length)` gives exactly `length` bytes of the blob, as `os.pread` on its file does."""


@dataclass(slots=True, eq=False)
class _Stream:
    digest: Digest
    blob_bytes: int
    topic: Callable[[int], str]
    read: Read
    waiting: deque[int] = field(default_factory=deque)
    queued: bytearray = field(default_factory=bytearray)


class ChunkFlow:
    """Streams of chunks, one per blob, taken in turn. Holds indices, never the chunks themselves."""

    __slots__ = ("_flying", "_streams", "_turn", "bytes_sent")

    def __init__(self) -> None:
        self._flying: dict[Digest, set[int]] = {}
        self._streams: dict[Digest, _Stream] = {}
        self._turn: deque[_Stream] = deque()
        self.bytes_sent = 0

    @property
    def pending(self) -> int:
        """Chunks that wait to be handed to the bus."""
        return sum(len(s.waiting) for s in self._turn)

    def waiting(self, digest: Digest) -> int:
        """Chunks of this blob that wait."""
        stream = self._streams.get(digest)
        return len(stream.waiting) if stream else 0

    def add(
        self,
        digest: Digest,
        blob_bytes: int,
        runs: Ranges,
        *,
        topic: Callable[[int], str],
        read: Read,
        patient: bool = False,
    ) -> int:
        """Queue the chunks that `runs` names; returns how many did not wait already.

        `topic` gives the topic of a chunk's index. Runs past the blob's end are left out. A `patient` sender,
        whose blob has one receiver, leaves out chunks that the bus may still be sending: on a slow link the
        receiver asks again for what is on its way.
        """
        flying = self._flying.get(digest, set()) if patient else set()
        stream = self._streams.get(digest)
        if stream is None:
            stream = _Stream(digest, blob_bytes, topic, read, queued=bytearray(count(blob_bytes)))
        before = len(stream.waiting)
        for index in indices(runs, len(stream.queued)):
            if not stream.queued[index] and index not in flying:
                stream.queued[index] = True
                stream.waiting.append(index)
        added = len(stream.waiting) - before
        if added and digest not in self._streams:
            self._streams[digest] = stream
            self._turn.append(stream)
        return added

    def cancel(self, digest: Digest) -> int:
        """Forget a blob's waiting chunks; returns how many there were."""
        self._flying.pop(digest, None)
        return self._end(digest)

    def _end(self, digest: Digest) -> int:
        stream = self._streams.pop(digest, None)
        if stream is None:
            return 0
        self._turn.remove(stream)
        return len(stream.waiting)

    def clear(self) -> int:
        """Forget every chunk, waiting or on its way: the link broke. Returns how many waited."""
        self._flying.clear()
        return sum(self.cancel(digest) for digest in list(self._streams))

    def pump(self, bus: Bus, window: int) -> int:
        """Publish while the bus has fewer than `window` unacknowledged messages; returns how many chunks.

        What `read` raises comes through, and StoreError where it gives too few bytes; that blob's chunks
        are forgotten first, so that the next call goes on with the others.
        """
        sent = 0
        if bus.backlog == 0:
            self._flying.clear()
        while self._turn and bus.backlog < window:
            stream = self._turn[0]
            index = stream.waiting[0]
            start, end = span(index, stream.blob_bytes)
            try:
                payload = encode(stream.digest, index, _exactly(stream, start, end - start))
            except Exception:
                self.cancel(stream.digest)
                raise
            if not bus.publish(stream.topic(index), payload):
                break  # no connection: the chunk stays first in line
            stream.waiting.popleft()
            stream.queued[index] = False
            self._turn.rotate(-1)
            self._flying.setdefault(stream.digest, set()).add(index)
            if not stream.waiting:
                self._end(stream.digest)
            sent += 1
            self.bytes_sent += len(payload)
        return sent


def _exactly(stream: _Stream, offset: int, length: int) -> bytes | memoryview:
    data = stream.read(offset, length)
    if len(data) != length:
        raise StoreError(
            f"blob {stream.digest[:12]}: {len(data)} bytes at {offset}, expected {length}: "
            "its file was cut short or replaced"
        )
    return data
