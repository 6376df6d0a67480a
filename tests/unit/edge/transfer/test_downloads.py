"""Blobs that a node fetches: what it subscribes to and leaves again, and when it asks once more."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.stand_ins.memory_bus import MemoryBroker, MemoryBus
from tests.unit.edge.transfer.transferred import DATA, DIGEST

from apiary.blobs import BlobStore
from apiary.bus.bus import Received
from apiary.bus.outlet import Outlet
from apiary.wire import Digest, NodeId
from apiary.wire.chunks import count, digest_of, encode, span
from apiary.wire.messages import BlobRef, Want
from apiary.wire.topics import TopicKind, Topics
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.downloads import Downloads

REF = BlobRef(digest=DIGEST, bytes=len(DATA))
PATTERN = Topics().pattern(TopicKind.CHUNK_DOWN, digest=DIGEST)
IDLE_S = 10.0


class Scene:
    def __init__(self, folder: Path, *, idle_s: float = IDLE_S, max_bytes: int | None = None):
        self._broker = MemoryBroker(seed=1)
        bus = self._broker.bus("pi-1")
        self.bus = Subscribed(bus)
        self._coordinator = self._broker.bus("coordinator")
        self._coordinator.subscribe(Topics().pattern(TopicKind.NODE_WANT))
        for connecting in (bus, self._coordinator):
            connecting.poll(0)
        self.store = BlobStore(folder, max_bytes)
        self.kept: set[Digest] = set()
        channel = NodeChannel(NodeId("pi-1"), self.bus, Topics(), Outlet(self.bus, Topics()))  # type: ignore[arg-type]
        self.downloads = Downloads(channel, self.store, idle_s=idle_s, keeps=lambda: self.kept)

    def wants(self) -> list[int]:
        """Of each request since the last look: how many chunks it names."""
        self._broker.now += 1.0
        got = [e for e in self._coordinator.poll(0) if isinstance(e, Received)]
        asked = [Want.decode(e.payload, who="pi-1") for e in got]
        return [sum(end - begin for begin, end in want.missing) for want in asked]

    def chunk(self, index: int, now: float, data: bytes = DATA, digest: Digest = DIGEST) -> bool:
        start, end = span(index, len(DATA))
        payload = encode(digest, index, data[start:end])
        return self.downloads.chunk(digest, index, payload, now) is not None


class Subscribed:
    """A bus that remembers what its client is subscribed to."""

    def __init__(self, bus: MemoryBus):
        self._bus = bus
        self.patterns: list[str] = []

    def subscribe(self, pattern: str) -> None:
        self.patterns.append(pattern)
        self._bus.subscribe(pattern)

    def unsubscribe(self, pattern: str) -> None:
        self.patterns.remove(pattern)
        self._bus.unsubscribe(pattern)

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "blobs")


CHUNKS = count(len(DATA))


def test_a_blob_that_is_whole_is_kept_and_its_topic_left(scene: Scene) -> None:
    scene.downloads.fetch(REF, 0.0)
    assert scene.bus.patterns == [PATTERN] and scene.wants() == [CHUNKS]
    assert [scene.chunk(i, 1.0) for i in range(CHUNKS)] == [False] * (CHUNKS - 1) + [True]
    assert scene.bus.patterns == [], "a finished blob that is sent to others costs this link nothing"
    assert scene.store.read(DIGEST) == DATA
    assert not scene.chunk(0, 2.0)
    scene.downloads.tick(1000.0)
    assert scene.wants() == []


def test_a_blob_is_fetched_once_for_all_who_want_it_until_nobody_does(scene: Scene) -> None:
    scene.downloads.fetch(REF, 0.0)
    scene.downloads.fetch(REF, 0.0, "release")
    assert scene.bus.patterns == [PATTERN] and len(scene.wants()) == 1
    scene.downloads.abandon("round")
    assert scene.bus.patterns == [PATTERN]
    scene.downloads.abandon("release")
    assert scene.bus.patterns == [] and not scene.chunk(0, 1.0)


def test_all_are_abandoned_at_once_where_no_owner_is_named(scene: Scene) -> None:
    scene.downloads.fetch(REF, 0.0)
    scene.downloads.fetch(REF, 0.0, "release")
    scene.downloads.abandon()
    assert scene.bus.patterns == []


def test_an_unanswered_request_is_repeated_after_pauses_that_double_up_to_a_bound(scene: Scene) -> None:
    scene.downloads.fetch(REF, 0.0)
    scene.wants()
    now, pauses = 0.0, []
    asked_at = now
    for _ in range(1 + 2 + 4 + 3 * 8):
        now += IDLE_S
        scene.downloads.tick(now)
        if scene.wants():
            pauses.append((now - asked_at) / IDLE_S)
            asked_at = now
    assert pauses == [1, 2, 4, 8, 8, 8]
    scene.downloads.again(now)
    assert scene.wants() == [CHUNKS]
    scene.downloads.tick(now + IDLE_S - 0.1)
    assert scene.wants() == []
    scene.downloads.tick(now + IDLE_S)
    assert scene.wants() == [CHUNKS], "a new connection begins with the short pause"


def test_only_what_is_missing_is_asked_for_again_and_not_while_a_slow_link_brings_it(scene: Scene) -> None:
    scene.downloads.fetch(REF, 0.0)
    scene.wants()
    scene.chunk(0, 4.0)
    scene.downloads.tick(4.0 + 15.9)
    assert scene.wants() == [], "chunks come every 4 s: the next may take four times that"
    scene.downloads.tick(4.0 + 16.0)
    assert scene.wants() == [CHUNKS - 1]


def test_a_pause_of_the_link_is_waited_out_so_long_and_no_longer(scene: Scene) -> None:
    scene.downloads.fetch(REF, 0.0)
    scene.chunk(0, 50.0)
    scene.chunk(1, 52.0)  # the longest counts
    scene.wants()
    scene.downloads.tick(52.0 + 79.9)
    assert scene.wants() == [], "four times 50 s, but at most eight times the idle time"
    scene.downloads.tick(52.0 + 80.0)
    assert scene.wants() == [CHUNKS - 2]


def test_a_new_connection_forgets_how_slow_the_link_was(tmp_path: Path) -> None:
    scene = Scene(tmp_path, idle_s=1.0)
    scene.downloads.fetch(REF, 0.0)
    scene.downloads.tick(1.0)
    assert scene.wants() == [CHUNKS, CHUNKS], "nothing is known of the link yet"
    scene.chunk(0, 5.0)
    scene.downloads.again(6.0)
    assert scene.wants() == [CHUNKS - 1]
    scene.downloads.tick(6.9)
    assert scene.wants() == []
    scene.downloads.tick(7.0)
    assert scene.wants() == [CHUNKS - 1]


def test_while_chunks_of_one_blob_come_another_waits_for_its_turn(scene: Scene) -> None:
    other = DATA[::-1]
    second = BlobRef(digest=digest_of(other), bytes=len(other))
    scene.downloads.fetch(REF, 0.0)
    scene.downloads.fetch(second, 0.0)
    scene.wants()
    scene.chunk(0, 8.0)
    scene.downloads.tick(8.0 + 31.9)
    assert scene.wants() == []
    scene.chunk(0, 8.0 + 31.9, other, digest_of(other))
    scene.downloads.tick(8.0 + 31.9 + 79.9)
    assert scene.wants() == [], "the pause was one of 31.9 s, of both together"
    scene.downloads.tick(8.0 + 31.9 + 80.0)
    assert scene.wants() == [CHUNKS - 1, CHUNKS - 1]


def test_the_pause_of_a_link_is_measured_over_all_blobs(scene: Scene) -> None:
    other = DATA[::-1]
    scene.downloads.fetch(REF, 0.0)
    scene.downloads.fetch(BlobRef(digest=digest_of(other), bytes=len(other)), 0.0)
    scene.chunk(0, 2.0)
    scene.chunk(0, 5.0, other, digest_of(other))
    scene.wants()
    scene.downloads.tick(5.0 + 11.9)
    assert scene.wants() == []
    scene.downloads.tick(5.0 + 12.0)
    assert scene.wants() == [CHUNKS - 1, CHUNKS - 1], "the longest pause was one of three seconds"


def test_room_is_made_before_and_never_by_what_is_kept(tmp_path: Path) -> None:
    scene = Scene(tmp_path, max_bytes=len(DATA))
    old = [scene.store.put(bytes([i]) * len(DATA)) for i in range(3)]
    scene.kept = {old[0]}
    scene.downloads.fetch(REF, 0.0)
    assert [digest in scene.store for digest in old] == [True, False, False]


def test_what_is_abandoned_leaves_no_file_and_can_be_fetched_anew(scene: Scene, tmp_path: Path) -> None:
    scene.downloads.fetch(REF, 0.0)
    scene.downloads.abandon("release")  # which did not want it
    assert scene.bus.patterns == [PATTERN]
    scene.downloads.abandon("round")
    assert list((tmp_path / "blobs").iterdir()) == []
    scene.downloads.fetch(REF, 1.0)
    assert [scene.chunk(i, 2.0) for i in range(CHUNKS)][-1]


def test_a_blob_that_does_not_give_its_digest_is_counted_and_fetched_again(scene: Scene) -> None:
    scene.downloads.fetch(REF, 0.0)
    scene.wants()
    for i in range(1, CHUNKS):
        scene.chunk(i, 1.0)
    assert not scene.chunk(0, 2.0, data=DATA[::-1]), "a whole chunk, of another blob"
    assert scene.downloads.spoiled(DIGEST) == 1 and scene.wants() == [CHUNKS]
    for i in range(CHUNKS):
        scene.chunk(i, 3.0)
    assert scene.store.read(DIGEST) == DATA
    assert scene.downloads.spoiled(DIGEST) == 0


def test_what_nobody_fetches_is_not_taken(scene: Scene) -> None:
    other = b"something else"
    payload = encode(digest_of(other), 0, other)
    assert scene.downloads.chunk(digest_of(other), 0, payload, 0.0) is None
    assert digest_of(other) not in scene.store
