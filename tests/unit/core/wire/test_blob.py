"""The weights document: what goes in comes out, views where they can be, and bounds before memory."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from apiary.errors import BlobError, SettingsError
from apiary.tensors import Weights
from apiary.wire.blob import MAX_HEADER_BYTES, MAX_TENSORS, decode, encode

WEIGHTS = Weights(
    {
        "conv/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "conv/bias": np.array([1.5, -2.5], np.float32),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 7), np.float32),
    }
)


def document(rows: list[Any], body: bytes, **changes: Any) -> bytes:
    header = {"v": 1, "codec": "raw_f32", "about": {}, "tensors": rows} | changes
    packed: bytes = msgpack.packb(header)
    return bytes([0x92]) + packed + b"\xc6" + len(body).to_bytes(4, "big") + body


def test_weights_come_back_in_order_with_what_was_said_about_them() -> None:
    got = decode(encode(WEIGHTS, about={"round": 3}), who="node pi-07")
    assert list(got.weights) == list(WEIGHTS)
    assert got.weights.shapes == WEIGHTS.shapes
    assert all(np.array_equal(got.weights[n], WEIGHTS[n]) for n in WEIGHTS)
    assert (got.codec, got.about) == ("raw_f32", {"round": 3})


def test_document_is_plain_msgpack() -> None:
    header, body = msgpack.unpackb(encode(WEIGHTS))
    assert [row[:3] for row in header["tensors"]] == [[n, "f4", list(s)] for n, s in WEIGHTS.shapes.items()]
    assert len(body) == 4 * WEIGHTS.count


def test_same_weights_same_bytes() -> None:
    assert encode(WEIGHTS) == encode(Weights(dict(WEIGHTS)))


def test_aligned_raw_weights_are_views_and_read_only() -> None:
    blob = bytearray(encode(WEIGHTS))
    got = decode(bytes(blob), who="n").weights["conv/kernel"]
    assert not got.flags.owndata
    assert not got.flags.writeable


def test_no_weights_at_all_is_a_document_too() -> None:
    assert len(decode(encode(Weights({})), who="n").weights) == 0


ROW = ["a", "f4", [2], 0, []]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a weights blob"),
        (b"\x92", "not a weights blob"),
        (b"PK\x03\x04 a zip file", "not a weights blob"),
        (b"\x92\xc1\xc1", "does not hold"),
        (document([ROW], bytes(8))[:-1], "binary of 8 bytes, but 7 follow"),
        (document([ROW], bytes(8)) + b"x", "binary of 8 bytes, but 9 follow"),
        (document([ROW], bytes(12)), "4 bytes follow the last tensor"),
        (document([ROW], bytes(4)), "tensor 'a' ends past the end"),
        (document([ROW], bytes(8), v=2), "its header is not of version 1"),
        (document([ROW], bytes(8), codec="gzip"), "codecs: no 'gzip'"),
        (document([ROW], bytes(8), codec="base"), "codecs: no 'base'"),
        (document([ROW], bytes(8), codec="../../etc"), "codecs: no "),
        (document([ROW], bytes(8), codec=7), "fields of the wrong type"),
        (document([ROW], bytes(8), about=[]), "fields of the wrong type"),
        (document([ROW, ROW], bytes(16)), "tensor 'a' is described wrongly"),
        (document([["a", "f8", [1], 0, []]], bytes(8)), "tensor 'a' is described wrongly"),
        (document([["a", ["f4"], [2], 0, []]], bytes(8)), "unhashable"),
        (document([["a", "f4", [2], 4, []]], bytes(8)), "tensor 'a' is described wrongly"),
        (document([["a", "f4", [-2], 0, []]], bytes(8)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [2.0], 0, []]], bytes(8)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [1] * 9, 0, []]], bytes(4)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [2**31 - 1] * 8, 0, []]], bytes(8)), "tensor 'a' ends past the end"),
        (document([["a", "f4", [2], 0, [1.0]]], bytes(8)), "dtype f4 with 1 parameters, expected f4"),
        (document([["a", "i1", [8], 0, []]], bytes(8)), "dtype i1 with 0 parameters, expected f4"),
        (document([["a", "f4", [2], 0, ["x"]]], bytes(8)), "not a finite float32 number"),
        (document([["a", "i1", [8], 0, [1e39]]], bytes(8), codec="int8"), "not a finite float32 number"),
        (
            document([["a", "i1", [8], 0, [float("nan")]]], bytes(8), codec="int8"),
            "not a finite float32 number",
        ),
        (document([["a", "f4"]], bytes(8)), "not enough values to unpack"),
        (document([7], bytes(8)), "cannot unpack"),
        (b"\x92" + b"\x91" * 100_000, "does not hold"),
        (b"\x92" + b"\xdd\xff\xff\xff\xff" + bytes(100), "does not hold"),
        (b"\x92" + b"\xdb\xff\xff\xff\xff" + bytes(100), "does not hold"),
        (
            document([[f"t{i}", "f4", [0], 0, []] for i in range(MAX_TENSORS + 1)], b""),
            "exceeds max_array_len",
        ),
        (document([], b"", about={"x": "y" * 2_000}), "exceeds max_str_len"),
    ],
    ids=range(34),
)
def test_bad_document_is_refused_with_who_and_why(data: bytes, message: str) -> None:
    with pytest.raises(BlobError, match=message) as caught:
        decode(data, who="node pi-07")
    assert str(caught.value).startswith("node pi-07: ")
    assert len(str(caught.value)) < 300


def test_limit_of_tensors_is_reached_from_below() -> None:
    rows = [[f"t{i}", "f4", [0], 0, []] for i in range(MAX_TENSORS)]
    assert len(decode(document(rows, b""), who="n").weights) == MAX_TENSORS


def test_header_that_never_ends_is_given_up() -> None:
    endless = b"\x92\x81\xa5about" + b"\x91" * (4 * MAX_HEADER_BYTES)
    with pytest.raises(BlobError, match="the weights blob does not hold: StackError"):
        decode(endless, who="n")


def test_unknown_codec_of_our_own_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="codecs: no 'raw_f23'; did you mean 'raw_f32'"):
        encode(WEIGHTS, codec_name="raw_f23")


def test_header_longer_than_one_feeding_is_read() -> None:
    weights = Weights({f"layer_{i:04d}/kernel": np.full(3, i, np.float32) for i in range(1_000)})
    document = encode(weights)
    assert len(document) > 3 * 8192
    assert {n: t[0] for n, t in decode(document, who="a").weights.items()} == {
        n: t[0] for n, t in weights.items()
    }
