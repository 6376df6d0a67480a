"""Both sides of `want`: nodes ask again with patience, the coordinator publishes once for all who ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiary.blobs import BlobStore
from apiary.bus.bus import BrokerLimits, Event
from apiary.bus.flow import ChunkFlow
from apiary.bus.outlet import Outlet
from apiary.wire import Digest, NodeId
from apiary.wire.chunks import CHUNK_BYTES, digest_of, encode, span
from apiary.wire.messages import BlobRef, Want
from apiary.wire.topics import Topics
from apiary_coordinator.updates.model_server import GATHER_AT_MOST, ModelServer
from apiary_edge.transfer.channel import NodeChannel
from apiary_edge.transfer.downloads import GAPS, MAX_PAUSE, Downloads

TOPICS = Topics()
NODE = NodeId("pi")
IDLE_S = 10.0
BLOB = bytes(range(256)) * (4 * CHUNK_BYTES // 256)
DIGEST = digest_of(BLOB)


class Recorder:
    """A bus that is always connected and remembers what was published."""

    connected = True
    backlog = 0
    limits = BrokerLimits("5.0")

    def __init__(self) -> None:
        self.topics: list[str] = []

    def subscribe(self, pattern: str) -> None: ...

    def unsubscribe(self, pattern: str) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.topics.append(topic)
        return True

    def poll(self, timeout_s: float) -> list[Event]:
        return []

    def wake(self) -> None: ...

    def close(self) -> None: ...


def node(folder: Path) -> tuple[Downloads, Recorder]:
    bus = Recorder()
    channel = NodeChannel(NODE, bus, TOPICS, Outlet(bus, TOPICS))
    downloads = Downloads(channel, BlobStore(folder), idle_s=IDLE_S, keeps=set)
    downloads.fetch(BlobRef(digest=DIGEST, bytes=len(BLOB)), 0.0)
    return downloads, bus


def chunk(index: int) -> bytes:
    start, end = span(index, len(BLOB))
    return encode(DIGEST, index, BLOB[start:end])


def asked_at(downloads: Downloads, bus: Recorder, begin: float, end: float) -> list[float]:
    """When the node asked again between two moments, second by second."""
    found = []
    for second in range(int(begin), int(end)):
        before = len(bus.topics)
        downloads.tick(float(second))
        found += [float(second)] * (len(bus.topics) - before)
    return found


def test_wish_without_an_answer_is_repeated_after_ever_longer_pauses(tmp_path: Path) -> None:
    downloads, bus = node(tmp_path)
    found = asked_at(downloads, bus, 1, 400)
    pauses = [b - a for a, b in zip([0.0, *found], found, strict=False)]
    assert pauses == [10, 20, 40, 80, 80, 80, 80]
    assert max(pauses) == MAX_PAUSE * IDLE_S


def test_new_link_is_asked_at_once_and_counts_from_the_shortest_pause(tmp_path: Path) -> None:
    downloads, bus = node(tmp_path)
    asked_at(downloads, bus, 1, 200)
    before = len(bus.topics)
    downloads.again(200.0)
    assert len(bus.topics) == before + 1
    assert asked_at(downloads, bus, 201, 225) == [210.0]


def test_slow_link_is_not_asked_for_what_is_on_its_way(tmp_path: Path) -> None:
    downloads, bus = node(tmp_path)
    downloads.chunk(DIGEST, 0, chunk(0), 9.0)
    downloads.chunk(DIGEST, 1, chunk(1), 18.0)
    # Nine seconds between chunks: the next one may take a while, and is asked for in the end.
    assert asked_at(downloads, bus, 19, 60) == [18 + GAPS * 9.0]
    downloads.chunk(DIGEST, 2, chunk(2), 60.0)
    assert downloads.chunk(DIGEST, 3, chunk(3), 61.0) == DIGEST


def model_server(folder: Path, expected: int) -> tuple[ModelServer, ChunkFlow]:
    blobs = BlobStore(folder)
    blobs.put(BLOB)
    server = ModelServer(TOPICS, blobs, gather_s=0.1)
    server.serve([BlobRef(digest=DIGEST, bytes=len(BLOB))], expected)
    return server, server.flow


def want(down: ModelServer, number: int, now: float) -> None:
    down.want(NodeId(f"pi-{number}"), Want(digest=DIGEST, missing=[(0, 4)]), now)


def test_wishes_that_keep_coming_are_answered_once(tmp_path: Path) -> None:
    down, flow = model_server(tmp_path, expected=11)
    sent = 0
    for i in range(10):
        want(down, i, now=0.09 * i)
        down.due(0.09 * i)
        sent += flow.pump(Recorder(), 1)
    assert sent == 0
    due = down.next_due()
    assert due == pytest.approx(0.81 + 0.5 * 0.81)
    assert due is not None
    down.due(due)
    assert flow.pump(Recorder(), 1) == 4


@pytest.mark.parametrize(("asked", "times"), [(1, 9.991), (999, 1.009)])
def test_the_fewer_have_asked_the_longer_others_are_waited_for(
    tmp_path: Path, asked: int, times: float
) -> None:
    down, _ = model_server(tmp_path, expected=1000)
    for i in range(asked):
        want(down, i, now=0.0)
    assert down.next_due() == pytest.approx(0.1 * times)


def test_wishes_are_put_off_for_so_long_and_no_longer(tmp_path: Path) -> None:
    down, flow = model_server(tmp_path, expected=1000)
    latest = GATHER_AT_MOST * 0.1
    for i in range(500):
        want(down, i, now=0.09 * i)
        if 0.09 * i < latest:
            assert down.next_due() is not None
            down.due(0.09 * i)
            assert flow.waiting(Digest(DIGEST)) == 0
    down.due(latest)
    assert flow.waiting(Digest(DIGEST)) == 4


def test_one_node_that_asks_again_and_again_puts_nobody_off(tmp_path: Path) -> None:
    down, flow = model_server(tmp_path, expected=1000)
    want(down, 1, now=0.0)
    due = down.next_due()
    assert due is not None
    for i in range(10):
        want(down, 1, now=0.01 * i)
    assert down.next_due() == due
    assert due is not None
    down.due(due)
    assert flow.waiting(Digest(DIGEST)) == 4


def test_a_blob_that_is_not_served_is_not_sent(tmp_path: Path) -> None:
    down, flow = model_server(tmp_path, expected=1)
    other = BlobRef(digest=digest_of(b"other"), bytes=5)
    down.want(NODE, Want(digest=other.digest, missing=[(0, 1)]), 0.0)
    assert down.next_due() is None and down.idle
    # Each owner has blobs of its own; what is replaced while a wish is gathered is not sent any more.
    down.serve([other], 2, "model")
    want(down, 1, now=0.0)
    down.want(NODE, Want(digest=other.digest, missing=[(0, 1)]), 0.0)
    down.serve([], 2, "model")
    down.due(100.0)
    assert flow.waiting(Digest(DIGEST)) == 4 and flow.waiting(Digest(other.digest)) == 0


def test_what_was_asked_for_goes_out_and_then_nothing_is_left_to_do(tmp_path: Path) -> None:
    down, flow = model_server(tmp_path, expected=2)
    assert down.idle and down.next_due() is None
    down.want(NODE, Want(digest=DIGEST, missing=[(0, 1), (2, 3)]), 0.0)
    assert not down.idle
    due = down.next_due()
    assert due is not None
    down.due(due - 0.01)
    assert not down.idle and flow.waiting(Digest(DIGEST)) == 0
    down.due(due)
    assert not down.idle and down.next_due() is None
    bus = Recorder()
    assert flow.pump(bus, 1) == 2 and down.idle
    assert bus.topics == [f"apiary-blob/default/down/{DIGEST}/{i}" for i in (0, 2)]


def test_the_first_of_several_blobs_says_when_to_look(tmp_path: Path) -> None:
    down, _ = model_server(tmp_path, expected=2)
    other = BlobRef(digest=digest_of(b"other"), bytes=5)
    down.serve([other], 1, "model")
    want(down, 1, now=0.0)
    first = down.next_due()
    assert first is not None and first > 0.1
    down.want(NODE, Want(digest=other.digest, missing=[(0, 1)]), 0.1)
    assert down.next_due() == 0.1, "all who are expected have asked for that"


def test_a_node_may_lack_a_chunk_here_and_there(tmp_path: Path) -> None:
    down, flow = model_server(tmp_path, expected=1)
    large = BlobRef(digest=digest_of(b"large"), bytes=200 * CHUNK_BYTES)
    down.serve([large], 1, "model")
    down.want(NODE, Want(digest=large.digest, missing=[(i, i + 1) for i in range(0, 200, 2)]), 0.0)
    down.due(0.0)
    assert flow.waiting(Digest(large.digest)) == 100


def test_everyone_has_asked_so_nothing_is_waited_for(tmp_path: Path) -> None:
    down, flow = model_server(tmp_path, expected=2)
    want(down, 1, now=0.0)
    want(down, 2, now=0.05)
    down.due(0.05)
    assert flow.waiting(Digest(DIGEST)) == 4


def test_a_blob_that_two_want_is_abandoned_when_neither_does(tmp_path: Path) -> None:
    downloads, _ = node(tmp_path)
    downloads.fetch(BlobRef(digest=DIGEST, bytes=len(BLOB)), 0.0, owner="releases")
    downloads.abandon("round")
    assert downloads.chunk(DIGEST, 0, chunk(0), 0.0) is None
    assert list(tmp_path.glob("*.download"))
    downloads.abandon("releases")
    assert not list(tmp_path.glob("*.download"))
