"""Blobs are cut and joined whatever the order, and nothing that is wrong gets in."""

from __future__ import annotations

import random
from itertools import islice

import msgpack
import pytest

from apiary.errors import ChunkError
from apiary.wire.chunks import (
    CHUNK_BYTES,
    ENVELOPE_BYTES,
    Assembly,
    count,
    digest_of,
    encode,
    indices,
    named,
    ranges,
    span,
)
from apiary.wire.messages import MAX_BLOB_BYTES

BLOB = random.Random(1).randbytes(CHUNK_BYTES * 3 + 17)
DIGEST = digest_of(BLOB)


def chunk(index: int) -> bytes:
    start, end = span(index, len(BLOB))
    return encode(DIGEST, index, BLOB[start:end])


@pytest.mark.parametrize(
    ("size", "chunks"), [(1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (14_000_000, 117), (0, 1)]
)
def test_count_and_span_cover_a_blob(size: int, chunks: int) -> None:
    assert count(size) == chunks
    assert span(0, size)[0] == 0
    assert span(chunks - 1, size)[1] == size
    assert all(span(i, size)[1] == span(i + 1, size)[0] for i in range(chunks - 1))


def test_envelope_is_small_and_the_packet_below_the_allocators_cliff() -> None:
    payload = encode(DIGEST, 9_999_999, bytes(CHUNK_BYTES))
    assert len(payload) - CHUNK_BYTES <= ENVELOPE_BYTES
    assert len(payload) + 256 < 126_976


def test_any_order_with_repetition_gives_the_blob() -> None:
    order = [0, 1, 2, 3, 2, 0, 3]
    random.Random(2).shuffle(order)
    assembly, body = Assembly(DIGEST, len(BLOB)), bytearray(len(BLOB))
    for i in order:
        taken = assembly.accept(i, chunk(i))
        if taken is not None:
            body[taken[0] : taken[0] + len(taken[1])] = taken[1]
    assert assembly.complete
    assert assembly.received == 4
    assert assembly.missing() == []
    assert body == BLOB


def test_repetition_is_none_and_missing_tells_the_rest() -> None:
    assembly = Assembly(DIGEST, len(BLOB))
    assert assembly.missing() == [(0, 4)]
    assert assembly.accept(1, chunk(1)) is not None
    assert assembly.accept(1, chunk(1)) is None
    assert assembly.missing() == [(0, 1), (2, 4)]
    assert assembly.missing(limit=1) == [(0, 1)]
    assembly.forget()
    assert assembly.missing() == [(0, 4)] and assembly.received == 0


GOOD = chunk(1)
DATA = BLOB[CHUNK_BYTES : 2 * CHUNK_BYTES]


@pytest.mark.parametrize(
    ("index", "payload", "message"),
    [
        (-1, GOOD, "chunk -1 of blob .*, which has 4"),
        (4, GOOD, "chunk 4 of blob .*, which has 4"),
        (2, GOOD, "says that it is another"),
        (1, encode(digest_of(b"other"), 1, DATA), "says that it is another"),
        (3, encode(DIGEST, 3, DATA), "has 120035 bytes, expected about 17|has .* bytes, expected about 17"),
        (0, encode(DIGEST, 0, DATA[:-1]), "holds 119999 bytes, expected 120000"),
        (1, GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "is damaged: its checksum does not hold"),
        (1, GOOD[:-1], "is not a chunk: binary of 120000 bytes, but 119999 follow"),
        (1, GOOD + b"x", "is not a chunk"),
        (1, b"", "is not a chunk"),
        (1, b"\x94", "is not a chunk"),
        (1, b"\xdd\xff\xff\xff\xff", "is not a chunk: not a list of four"),
        (1, b"\x94\xdd\xff\xff\xff\xff", "is not a chunk"),
        (1, b"{}", "is not a chunk"),
        (1, msgpack.packb([b"12345678", 1, 2, "text"]), "is not a chunk: no binary"),
        (1, msgpack.packb(["\x00", [1], {}, b""]), "says that it is another|is not a chunk"),
    ],
    ids=range(16),
)
def test_wrong_chunk_is_refused_and_stays_missing(index: int, payload: bytes, message: str) -> None:
    assembly = Assembly(DIGEST, len(BLOB))
    with pytest.raises(ChunkError, match=message) as caught:
        assembly.accept(index, payload)
    assert len(str(caught.value)) < 200
    assert assembly.received == 0


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, CHUNK_BYTES])
def test_a_chunk_of_any_size_comes_through(size: int) -> None:
    data = BLOB[:size]
    digest = digest_of(data)
    taken = Assembly(digest, size).accept(0, encode(digest, 0, data))
    assert taken is not None and (taken[0], bytes(taken[1])) == (0, data)


@pytest.mark.parametrize(("more", "message"), [(0, "holds .* bytes, expected 17"), (1, "expected about 17")])
def test_a_payload_that_is_longer_than_any_envelope_is_refused_by_its_length(more: int, message: str) -> None:
    longest = 17 + ENVELOPE_BYTES + more
    envelope = len(encode(DIGEST, 3, bytes(50))) - 50
    payload = encode(DIGEST, 3, bytes(longest - envelope))
    assert len(payload) == longest
    with pytest.raises(ChunkError, match=message):
        Assembly(DIGEST, len(BLOB)).accept(3, payload)


def test_what_is_not_verified_is_told_apart_once_the_whole_is_there() -> None:
    assembly = Assembly(DIGEST, len(BLOB))
    stored = bytearray(len(BLOB))
    for i in range(assembly.chunks):
        payload = GOOD[:-1] + bytes([GOOD[-1] ^ 1]) if i == 1 else chunk(i)
        taken = assembly.accept(i, payload, verify=False)
        assert taken is not None
        stored[taken[0] : taken[0] + len(taken[1])] = taken[1]
    assert assembly.complete and assembly.damaged(memoryview(stored)) == [1]
    for _ in range(2):
        assembly.lost(1)
        assert assembly.received == 3
    assert assembly.missing() == [(1, 2)] and assembly.damaged(memoryview(stored)) == []
    assembly.forget()
    assert assembly.damaged(memoryview(bytes(len(BLOB)))) == [], "none has come yet"


def test_damage_is_told_even_where_the_chunk_is_there_already() -> None:
    assembly = Assembly(DIGEST, len(BLOB))
    assembly.accept(1, chunk(1))
    with pytest.raises(ChunkError, match="is damaged"):
        assembly.accept(1, GOOD[:-1] + bytes([GOOD[-1] ^ 1]))


def test_ranges_and_indices_are_each_others_inverse() -> None:
    some = [0, 1, 2, 5, 7, 8]
    runs = ranges(some)
    assert runs == [(0, 3), (5, 6), (7, 9)]
    assert list(indices(runs, 100)) == some
    assert list(indices(runs, 6)) == [0, 1, 2, 5]
    assert ranges([]) == []
    assert ranges(range(0, 5000, 2)) == [(i, i + 1) for i in range(0, 2000, 2)], "a message has an end"


def test_list_of_runs_from_a_peer_costs_no_more_than_the_blob_has_chunks() -> None:
    chunks = count(MAX_BLOB_BYTES)
    hostile = [(0, 2**40)] * 2_000
    assert list(islice(indices(hostile, chunks), 2 * chunks)) == list(range(chunks))
    assert list(indices([(7, 7), (2, 5)], chunks)) == [2, 3, 4]
    assert list(indices([(5, 3), (2**40, 2**40), (-3, 2), (1, 4)], chunks)) == [0, 1, 2, 3]


def test_a_chunk_names_itself() -> None:
    data = bytes(range(100)) * 3_000
    digest = digest_of(data)
    payload = encode(digest, 1, data[slice(*span(1, len(data)))])
    assert named(payload) == (digest[:16], 1)


NO_LIST = "not a list of four"
OTHER_TYPE = "its digest, index or checksum is of another type"
NO_BINARY = "no binary where one is expected"


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", ""),
        (b"\x93\x01\x02\x03", NO_LIST),
        (b"\x93" + msgpack.packb([b"x" * 8, 1, 3, b"data"])[1:], NO_LIST),
        (b"\x95" + msgpack.packb([b"x" * 8, 1, 3, b"data"])[1:], NO_LIST),
        (b"\x94" + msgpack.packb([b"x" * 8, 1, 3])[1:], NO_BINARY),
        (msgpack.packb([b"x" * 8, -1.5, 3, b"x"]), OTHER_TYPE),
        (msgpack.packb([b"x" * 8, True, 3, b"x"]), OTHER_TYPE),
        (msgpack.packb([b"x" * 8, 1, 3.0, b"x"]), OTHER_TYPE),
        (msgpack.packb([b"x" * 8, 1, False, b"x"]), OTHER_TYPE),
        (msgpack.packb(["text", 0, 3, b"x"]), OTHER_TYPE),
    ],
)
def test_what_names_no_chunk_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(ChunkError, match=f"a chunk is not a chunk: {why}"):
        named(payload)
