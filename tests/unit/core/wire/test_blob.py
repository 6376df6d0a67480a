"""The weights document: what goes in comes out, views where they can be, and bounds before memory."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from apiary.errors import BlobError, SettingsError
from apiary.tensors import Weights
from apiary.wire.blob import MAX_HEADER_BYTES, MAX_TENSORS, Numbers, codec, decode, encode, most_bytes

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
LARGEST = float(np.finfo(np.float32).max)
BEYOND = float(np.nextafter(LARGEST, np.inf))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a weights blob"),
        (b"\x92", "not a weights blob"),
        (b"PK\x03\x04 a zip file", "not a weights blob"),
        (b"\x92\xc1\xc1", "does not hold"),
        (b"\x92\xc1", "does not hold"),
        (b"\x92" + msgpack.packb([1]) + b"\xc4\x00", "its header is not of version 1"),
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
        (document([], b"", tensors={}), "fields of the wrong type"),
        (document([ROW, ROW], bytes(16)), "tensor 'a' is described wrongly"),
        (document([ROW, ["a", "f4", [2], 8, []]], bytes(16)), "tensor 'a' is described wrongly"),
        (document([[7, "f4", [2], 0, []]], bytes(8)), "tensor '7' is described wrongly"),
        (document([["a", "f8", [1], 0, []]], bytes(8)), "tensor 'a' is described wrongly"),
        (document([["a", ["f4"], [2], 0, []]], bytes(8)), "unhashable"),
        (document([["a", "f4", [2], 4, []]], bytes(8)), "tensor 'a' is described wrongly"),
        (document([["a", "f4", [-2], 0, []]], bytes(8)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [2, -1], 0, []]], bytes(8)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [2.0], 0, []]], bytes(8)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [2, True], 0, []]], bytes(8)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [2**31], 0, []]], bytes(8)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [1] * 9, 0, []]], bytes(4)), "tensor 'a' has a wrong shape"),
        (document([["a", "f4", [2**31 - 1] * 8, 0, []]], bytes(8)), "tensor 'a' ends past the end"),
        (document([["a", "f2", [5], 0, []]], bytes(8)), "tensor 'a' ends past the end"),
        (document([["a", "u1", [9], 0, []]], bytes(8)), "tensor 'a' ends past the end"),
        (document([["a", "f2", [4], 0, []]], bytes(8)), "dtype f2 with 0 parameters, expected f4"),
        (document([["a", "u1", [8], 0, []]], bytes(8)), "dtype u1 with 0 parameters, expected f4"),
        (document([["a", "f4", [2], 0, [1.0]]], bytes(8)), "dtype f4 with 1 parameters, expected f4"),
        (document([["a", "i1", [8], 0, []]], bytes(8)), "dtype i1 with 0 parameters, expected f4"),
        (document([["a", "f4", [2], 0, ["x"]]], bytes(8)), "not a finite float32 number"),
        (document([["a", "i1", [8], 0, [1e39]]], bytes(8), codec="int8"), "not a finite float32 number"),
        (document([["a", "i1", [8], 0, [BEYOND]]], bytes(8), codec="int8"), "not a finite float32 number"),
        (document([["a", "i1", [8], 0, [True]]], bytes(8), codec="int8"), "not a finite float32 number"),
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
        (document([], b"", about={"x": "y" * 1025}), "exceeds max_str_len"),
        (document([], b"", about={str(i): i for i in range(65)}), "exceeds max_map_len"),
        (document([], b"", about={"x": b"y"}), "exceeds max_bin_len"),
    ],
    ids=range(50),
)
def test_bad_document_is_refused_with_who_and_why(data: bytes, message: str) -> None:
    with pytest.raises(BlobError, match=message) as caught:
        decode(data, who="node pi-07")
    assert str(caught.value).startswith("node pi-07: ")
    assert len(str(caught.value)) < 300


def test_what_is_at_a_limit_is_read() -> None:
    about = {"x" * 1024: "y" * 1024} | {str(i): i for i in range(63)}
    rows = [["a", "i1", [1] * 7 + [8], 0, [LARGEST]]]
    got = decode(document(rows, bytes(8), codec="int8", about=about), who="n")
    assert got.about == about and got.weights["a"].shape == (1, 1, 1, 1, 1, 1, 1, 8)


@pytest.mark.parametrize(("size", "fits"), [(2**20, True), (2**20 + 1, False)])
def test_a_header_has_at_most_a_mebibyte(size: int, fits: bool) -> None:
    rows: list[list[Any]] = [[f"{i:0235d}", "f4", [0], 0, []] for i in range(4090)]
    left = size - (len(document(rows, b"")) - 6)
    for row in rows[: left // 19]:
        row[0] += "x" * 19
    rows[-1][0] += "x" * (left % 19)
    longest = document(rows, b"")
    assert len(longest) == 1 + size + 5
    if fits:
        assert len(decode(longest, who="n").weights) == 4090
    else:
        with pytest.raises(BlobError, match="does not hold"):
            decode(longest, who="n")


def test_the_most_that_an_update_may_take() -> None:
    shapes = {"w": (3, 5), "b": (5,)}
    header = len(msgpack.packb({"v": 1, "codec": "int8", "about": {}, "tensors": []}))
    rows = 1 + 2 + 3 + 3 + 1 + 1 + 4 * 9 + 1 + 2 + 3 + 2 + 1 + 1 + 4 * 9
    assert most_bytes(shapes, "int8") == header + rows + 1024 + 20


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


@pytest.mark.parametrize("name", ["raw_f32", "f16", "int8"])
def test_any_numbers_are_decoded_without_the_others(name: str) -> None:
    made = encode(WEIGHTS, codec_name=name)
    whole = np.concatenate([t.reshape(-1) for t in decode(made, who="n").weights.values()])
    numbers = Numbers(made, who="n")
    for start in range(whole.size + 1):
        for stop in range(start, whole.size + 1):
            asked: list[int] = []

            def read(offset: int, size: int, asked: list[int] = asked) -> bytes:
                asked.append(size)
                return made[offset : offset + size]

            out = np.full(stop - start, np.nan, np.float32)
            numbers.part(read, start, out)
            assert out.tobytes() == whole[start:stop].tobytes()
            assert sum(asked) == (stop - start) * {"raw_f32": 4, "f16": 2, "int8": 1}[name]


def test_a_codec_of_whole_tensors_decodes_them_and_past_the_end_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = encode(WEIGHTS, codec_name="int8")
    whole = np.concatenate([t.reshape(-1) for t in decode(made, who="n").weights.values()])
    monkeypatch.setattr(codec("int8"), "elementwise", False)
    numbers = Numbers(made, who="n")
    for start in range(whole.size):
        out = np.full(5, -7, np.float32)
        numbers.part(lambda offset, size: made[offset : offset + size], start, out)
        there = whole[start : start + 5]
        assert out.tolist() == [*there.tolist(), *[-7.0] * (5 - len(there))]


def test_documents_of_one_model_share_where_its_tensors_lie() -> None:
    first = Numbers(encode(WEIGHTS, codec_name="int8"), who="n")
    doubled = Weights({n: 2 * t for n, t in WEIGHTS.items()})
    made = encode(doubled, codec_name="int8", about={"node": "of another length"})
    second = Numbers(made, who="n", like=first)
    assert second._layout is first._layout
    out = np.empty(3, np.float32)
    second.part(lambda offset, size: made[offset : offset + size], 23, out)
    assert out == pytest.approx([46, 3, -5], rel=0.01)
    other = Numbers(encode(Weights({"a": np.zeros(3, np.float32)})), who="n", like=first)
    assert other._layout is not first._layout


def test_what_is_no_document_has_no_numbers() -> None:
    with pytest.raises(BlobError, match="node pi-07: not a weights blob"):
        Numbers(b"{}", who="node pi-07")
    with pytest.raises(BlobError, match="node pi-07: the weights blob does not hold"):
        Numbers(encode(WEIGHTS)[:-1], who="node pi-07")
