"""Chunks are fed to the bus bounded, fairly and once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.stand_ins.memory_bus import MemoryBroker, MemoryBus

from apiary.bus.bus import Received
from apiary.bus.flow import ChunkFlow
from apiary.errors import StoreError
from apiary.wire import Digest
from apiary.wire.chunks import CHUNK_BYTES, Assembly, digest_of

A, B = bytes(CHUNK_BYTES * 4 + 5), b"\1" * (CHUNK_BYTES * 3)
DIGEST_A, DIGEST_B = digest_of(A), digest_of(B)


@pytest.fixture
def world() -> tuple[MemoryBroker, MemoryBus, MemoryBus]:
    broker = MemoryBroker()
    sender, receiver = broker.bus("sender"), broker.bus("receiver")
    receiver.subscribe("#")
    sender.poll(0)
    receiver.poll(0)
    return broker, sender, receiver


def reader(blob: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: blob[offset : offset + length]


def add(flow: ChunkFlow, blob: bytes, runs: list[tuple[int, int]], name: str) -> int:
    return flow.add(digest_of(blob), len(blob), runs, topic=lambda i: f"{name}/{i}", read=reader(blob))


def topics(bus: MemoryBus) -> list[str]:
    return [e.topic for e in bus.poll(0) if isinstance(e, Received)]


def test_window_is_kept(world: tuple[MemoryBroker, MemoryBus, MemoryBus]) -> None:
    _, sender, receiver = world
    flow = ChunkFlow()
    assert add(flow, A, [(0, 5)], "a") == 5
    assert flow.pump(sender, 2) == 2
    assert flow.pump(sender, 2) == 0, "nothing was acknowledged yet"
    sender.poll(0)
    assert flow.pump(sender, 3) == 3
    assert flow.pending == 0
    assert topics(receiver) == [f"a/{i}" for i in range(5)]


def test_streams_take_turns(world: tuple[MemoryBroker, MemoryBus, MemoryBus]) -> None:
    _, sender, receiver = world
    flow = ChunkFlow()
    add(flow, A, [(0, 5)], "a")
    add(flow, B, [(0, 3)], "b")
    flow.pump(sender, 100)
    assert topics(receiver) == ["a/0", "b/0", "a/1", "b/1", "a/2", "b/2", "a/3", "a/4"]


def test_chunk_that_waits_is_not_queued_twice_and_one_that_left_is(
    world: tuple[MemoryBroker, MemoryBus, MemoryBus],
) -> None:
    _, sender, receiver = world
    flow = ChunkFlow()
    assert add(flow, A, [(0, 2)], "a") == 2
    assert add(flow, A, [(1, 4)], "a") == 2
    assert add(flow, A, [(1, 4)], "a") == 0
    flow.pump(sender, 1)
    assert add(flow, A, [(0, 1)], "a") == 1, "chunk 0 has left: it is wanted again"
    flow.pump(sender, 100)
    assert topics(receiver) == ["a/0", "a/1", "a/2", "a/3", "a/0"]


def test_runs_past_the_end_and_backwards_are_left_out() -> None:
    flow = ChunkFlow()
    assert add(flow, A, [(-5, 1), (3, 2), (3, 10**12), (1, 2)], "a") == 3
    assert flow.waiting(DIGEST_A) == 3
    assert add(flow, B, [(10**9, 10**10)], "b") == 0
    assert flow.waiting(DIGEST_B) == 0


def test_a_blob_of_which_nothing_is_wanted_is_not_in_line(
    world: tuple[MemoryBroker, MemoryBus, MemoryBus],
) -> None:
    _, sender, _ = world
    flow = ChunkFlow()
    assert add(flow, B, [], "b") == 0
    assert flow.pump(sender, 100) == 0


def test_cancel_and_clear(world: tuple[MemoryBroker, MemoryBus, MemoryBus]) -> None:
    _, sender, receiver = world
    flow = ChunkFlow()
    add(flow, A, [(0, 5)], "a")
    add(flow, B, [(0, 3)], "b")
    flow.pump(sender, 1)
    assert flow.cancel(DIGEST_A) == 4
    assert flow.cancel(DIGEST_A) == 0
    assert flow.cancel(Digest("0" * 64)) == 0
    flow.pump(sender, 2)
    assert flow.clear() == 2
    assert flow.pending == 0
    assert flow.pump(sender, 100) == 0
    assert topics(receiver) == ["a/0", "b/0"]


def test_without_a_connection_nothing_is_lost(world: tuple[MemoryBroker, MemoryBus, MemoryBus]) -> None:
    broker, sender, receiver = world
    flow = ChunkFlow()
    add(flow, B, [(0, 3)], "b")
    broker.cut("sender")
    assert flow.pump(sender, 100) == 0
    assert flow.pending == 3
    broker.now += 1.0
    sender.poll(0)
    assert flow.pump(sender, 100) == 3
    assert topics(receiver) == ["b/0", "b/1", "b/2"]


def test_bytes_are_counted_and_chunks_make_the_blob(
    world: tuple[MemoryBroker, MemoryBus, MemoryBus],
) -> None:
    _, sender, receiver = world
    flow = ChunkFlow()
    add(flow, A, [(0, 5)], "a")
    assert flow.pump(sender, 100) == 5
    messages = [e for e in receiver.poll(0) if isinstance(e, Received)]
    assert flow.bytes_sent == sum(len(e.payload) for e in messages)
    assembly, body = Assembly(DIGEST_A, len(A)), bytearray(b"\xff" * len(A))
    for e in messages:
        taken = assembly.accept(int(e.topic.split("/")[1]), e.payload)
        assert taken is not None
        body[taken[0] : taken[0] + len(taken[1])] = taken[1]
    assert assembly.complete
    assert body == A


def test_short_file_ends_its_stream_and_no_other(
    world: tuple[MemoryBroker, MemoryBus, MemoryBus],
) -> None:
    _, sender, receiver = world
    flow = ChunkFlow()
    add(flow, B, [(0, 3)], "b")
    flow.add(DIGEST_A, len(A), [(0, 5)], topic=lambda i: f"a/{i}", read=reader(A[:10]))
    with pytest.raises(StoreError, match=rf"blob {DIGEST_A[:12]}: 10 bytes at 0, expected 120000: its file"):
        flow.pump(sender, 100)
    assert flow.waiting(DIGEST_A) == 0
    flow.pump(sender, 100)
    assert topics(receiver) == ["b/0", "b/1", "b/2"]


def test_a_patient_sender_does_not_repeat_what_is_still_on_its_way(
    world: tuple[MemoryBroker, MemoryBus, MemoryBus],
) -> None:
    _, sender, _ = world
    flow = ChunkFlow()

    def ask(*, patient: bool) -> int:
        return flow.add(DIGEST_A, len(A), [(0, 3)], topic=lambda i: f"a/{i}", read=reader(A), patient=patient)

    assert ask(patient=True) == 3
    flow.pump(sender, 10)
    assert ask(patient=True) == 0
    sender.poll(0)  # acknowledged: now a repeated wish means that they were lost
    flow.pump(sender, 10)
    assert ask(patient=True) == 3
    flow.pump(sender, 10)
    assert ask(patient=False) == 3


@pytest.mark.parametrize("waits", [False, True])
def test_what_was_given_up_is_not_on_its_way_any_more(
    world: tuple[MemoryBroker, MemoryBus, MemoryBus], waits: bool
) -> None:
    _, sender, _ = world
    for forget in (lambda flow: flow.cancel(DIGEST_A), ChunkFlow.clear):
        flow = ChunkFlow()

        def ask(end: int, flow: ChunkFlow = flow) -> int:
            return flow.add(DIGEST_A, len(A), [(0, end)], topic=str, read=reader(A), patient=True)

        ask(3)
        flow.pump(sender, sender.backlog + (2 if waits else 3))
        assert ask(3) == 0
        forget(flow)
        assert ask(3) == 3


def test_a_single_chunk_is_on_its_way_until_it_is_acknowledged(
    world: tuple[MemoryBroker, MemoryBus, MemoryBus],
) -> None:
    _, sender, _ = world
    flow = ChunkFlow()

    def ask() -> int:
        return flow.add(DIGEST_A, len(A), [(0, 1)], topic=str, read=reader(A), patient=True)

    ask()
    flow.pump(sender, 10)
    flow.pump(sender, 10)
    assert ask() == 0
