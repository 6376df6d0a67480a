"""Whatever bytes come, a decoder answers with a value or a WireError: no other exception, in bounded time."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiary.errors import MessageError, WireError
from apiary.plugins import names
from apiary.tensors import Weights
from apiary.wire import blob, chunks
from apiary.wire import messages as m
from apiary.wire.topics import Topic, TopicKind, Topics

QUICK = settings(max_examples=200, deadline=10_000, suppress_health_check=[HealthCheck.too_slow])
TOPICS = Topics()
KINDS = sorted(m.Message.__subclasses__(), key=lambda c: c.__name__)
BLOB = bytes(range(256)) * 1_000
DIGEST = chunks.digest_of(BLOB)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


def taken(decode: Any, *arguments: Any, **named: Any) -> Any:
    """The value, or None for a WireError with a short message; anything else fails the test."""
    try:
        return decode(*arguments, **named)
    except WireError as e:
        assert len(str(e)) < 1_000
        return None


@QUICK
@given(st.text() | st.sampled_from([k.pattern for k in TopicKind]).map(lambda p: f"apiary/default/{p}"))
def test_topics(topic: str) -> None:
    got = taken(TOPICS.parse, topic)
    assert got is None or isinstance(got, Topic)


@QUICK
@given(st.binary(max_size=300))
def test_messages_of_any_bytes(data: bytes) -> None:
    for kind in KINDS:
        taken(kind.decode, data, who="n")


@QUICK
@given(st.sampled_from(KINDS), st.data())
def test_messages_with_any_value_in_any_field(kind: type[m.Message], data: st.DataObject) -> None:
    fields = data.draw(st.dictionaries(st.sampled_from(sorted(kind.model_fields)), trees, max_size=8))
    text = json.dumps({"v": 1, **fields}, default=lambda b: b.hex())
    got = taken(kind.decode, text.encode(), who="n")
    if got is not None:
        assert kind.decode(got.encode(), who="n") == got


@QUICK
@given(st.sampled_from(KINDS), st.data())
def test_values_of_a_message_survive_the_wire_or_are_refused(
    kind: type[m.Message], data: st.DataObject
) -> None:
    """Also lone surrogates, which JSON can write and UTF-8 cannot."""
    text = data.draw(st.text(st.characters(), max_size=10))
    raw = json.dumps({"v": 1, "state": "ready", "why": text, "version": text, "labels": {text: 1}})
    got = taken(kind.decode, raw.encode(), who="n")
    if got is not None:
        assert kind.decode(got.encode(), who="n") == got


@QUICK
@given(st.binary(max_size=200), st.integers(-2, 5))
def test_chunks_of_any_bytes(data: bytes, index: int) -> None:
    assembly = chunks.Assembly(DIGEST, len(BLOB))
    assert taken(assembly.accept, index, data) is None
    assert assembly.received == 0


@QUICK
@given(st.data())
def test_damaged_chunk_is_refused_or_means_the_same(data: st.DataObject) -> None:
    start, end = chunks.span(1, len(BLOB))
    payload = bytearray(chunks.encode(DIGEST, 1, BLOB[start:end]))
    at = data.draw(st.integers(0, 60) | st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    got = taken(chunks.Assembly(DIGEST, len(BLOB)).accept, 1, bytes(payload))
    assert got is None or (got[0] == start and got[1] == BLOB[start:end])


@QUICK
@given(trees)
def test_chunks_of_any_msgpack(tree: Any) -> None:
    packed = msgpack.packb(tree)
    assert taken(chunks.Assembly(DIGEST, len(BLOB)).accept, 0, packed) is None


@QUICK
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=30), st.integers(1, 50))
def test_indices_are_ascending_and_within_the_blob(runs: list[tuple[int, int]], count: int) -> None:
    got = list(chunks.indices(runs, count))
    assert got == sorted(set(got))
    assert all(0 <= i < count for i in got)


@given(st.sets(st.integers(0, 300)))
def test_ranges_name_exactly_what_they_were_made_of(some: set[int]) -> None:
    assert list(chunks.indices(chunks.ranges(sorted(some)), 301)) == sorted(some)


@QUICK
@given(st.binary(max_size=300), st.booleans())
def test_blobs_of_any_bytes(data: bytes, begin_well: bool) -> None:
    taken(blob.decode, (b"\x92" if begin_well else b"") + data, who="n")


rows = st.lists(
    st.tuples(
        st.text(max_size=3),
        st.sampled_from(["f4", "f2", "i1", "u1"]) | scalars,
        st.lists(st.integers(0, 4) | scalars, max_size=4) | scalars,
        st.integers(0, 40) | scalars,
        st.lists(scalars, max_size=2) | scalars,
    )
    | trees,
    max_size=4,
)


@QUICK
@given(st.sampled_from(names("apiary.wire.codecs")), rows, trees, st.binary(max_size=64))
def test_blobs_with_any_header(codec: str, table: list[Any], about: Any, body: bytes) -> None:
    header = msgpack.packb({"v": 1, "codec": codec, "about": about, "tensors": table})
    document = b"\x92" + header + b"\xc6" + len(body).to_bytes(4, "big") + body
    got = taken(blob.decode, document, who="n")
    if got is not None:
        # Every byte of the body was some tensor's: nothing larger than the document (times four) came out.
        assert got.weights.count <= len(body)


@QUICK
@given(st.sampled_from(names("apiary.wire.codecs")), st.data())
def test_damaged_blob_is_refused_or_still_well_formed(codec: str, data: st.DataObject) -> None:
    weights = Weights({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})
    document = bytearray(blob.encode(weights, codec_name=codec, about={"round": 1}))
    at = data.draw(st.integers(0, len(document) - 1))
    document[at] ^= data.draw(st.integers(1, 255))
    got = taken(blob.decode, bytes(document), who="n")
    assert got is None or got.weights.count <= 40


def test_every_kind_of_message_is_covered() -> None:
    assert len(KINDS) >= 12
    for kind in KINDS:
        try:
            kind.decode(b"{}", who="n")
        except MessageError as e:
            assert kind.__name__.lower() in str(e)
