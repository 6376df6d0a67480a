"""Weights as one msgpack document `[header, bin]`, named by the sha256 of its bytes.

The header lists the tensors (name, dtype, shape, offset, codec parameters), the bin is their bytes back
to back, so that decoding copies nothing: raw float32 comes out as views of the document.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from apiary.errors import BlobError, SettingsError
from apiary.plugins import load
from apiary.tensors import Shapes, Weights
from apiary.wire.chunks import bin_view
from apiary.wire.codecs.base import Codec, Encoded

MAX_HEADER_BYTES: Final = 2**20
MAX_TENSORS: Final = 4096
_FEED_BYTES: Final = 8192
_ABOUT_BYTES: Final = 1024
"""An update says in `about` its run, round, node and samples: up to 190 bytes."""
_MOST_PARAMETERS: Final = 4
"""Of one tensor; the codecs so far have one at most."""
_MAX_FLOAT32: Final = (2 - 2**-23) * 2.0**127
_DTYPES: Final = {"f4": 4, "f2": 2, "i1": 1, "u1": 1}


@dataclass(frozen=True, slots=True)
class WeightsBlob:
    """Decoded weights and their header."""

    weights: Weights
    codec: str
    about: Mapping[str, Any]


def codec(name: str) -> Codec:
    """The codec of that name. Raises SettingsError."""
    return load("apiary.wire.codecs", name).CODEC  # type: ignore[no-any-return]


def encode(weights: Weights, *, codec_name: str = "raw_f32", about: Mapping[str, Any] | None = None) -> bytes:
    """The document for these weights; `about` is a small JSON-like mapping kept in the header."""
    coder = codec(codec_name)
    rows: list[list[Any]] = []
    parts: list[bytes | memoryview] = []
    offset = 0
    for name, tensor in weights.items():
        enc = coder.encode(tensor)
        rows.append([name, enc.dtype, list(tensor.shape), offset, list(enc.parameters)])
        parts.append(enc.data)
        offset += len(enc.data)
    header = msgpack.packb({"v": 1, "codec": codec_name, "about": dict(about or {}), "tensors": rows})
    return b"".join([b"\x92", header, b"\xc6", offset.to_bytes(4, "big"), *parts])


def most_bytes(shapes: Shapes, codec_name: str) -> int:
    """The largest document that `encode` gives for these shapes with an `about` of an update.

    A little more than that: 1 KiB for `about`, so that a later version may say more there.
    """
    coder = codec(codec_name)
    rows: list[list[Any]] = []
    offset = 0
    for name, shape in shapes.items():
        rows.append([name, "f4", list(shape), offset, [1.0] * _MOST_PARAMETERS])
        offset += coder.most_bytes(math.prod(shape))
    header = msgpack.packb({"v": 1, "codec": codec_name, "about": {}, "tensors": rows})
    return len(header) + _ABOUT_BYTES + offset


def decode(document: bytes | memoryview, *, who: str) -> WeightsBlob:
    """Read a document from `who`. Raises BlobError and nothing else; memory is bounded by the document's."""
    view = memoryview(document)
    if len(view) < 2 or view[0] != 0x92:
        raise BlobError(f"{who}: not a weights blob: it does not begin as a list of two")
    unpacker = msgpack.Unpacker(
        max_buffer_size=MAX_HEADER_BYTES,
        max_array_len=MAX_TENSORS,
        max_map_len=64,
        max_str_len=1024,
        max_bin_len=0,
    )
    try:
        header = _header(unpacker, view[1 : 1 + MAX_HEADER_BYTES])
        body = bin_view(view, 1 + unpacker.tell())
        return _decode(header, body)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException, SettingsError) as e:
        raise BlobError(
            f"{who}: the weights blob does not hold: {type(e).__name__}: {str(e)[:120]}"
        ) from None


def _header(unpacker: msgpack.Unpacker, view: memoryview) -> Any:
    """The document's first part, fed in small pieces: what is fed is copied, and most of it is weights."""
    fed, step = 0, _FEED_BYTES
    while True:
        unpacker.feed(view[fed : fed + step])
        fed += step
        try:
            return unpacker.unpack()
        except msgpack.OutOfData:
            if fed >= len(view):
                raise
            step = fed  # doubled: a header that is nearly too long costs twice its parsing at most


def _decode(header: Any, body: memoryview) -> WeightsBlob:
    if not isinstance(header, dict) or header.get("v") != 1:
        raise ValueError("its header is not of version 1")
    name, about, rows = header["codec"], header["about"], header["tensors"]
    if not (isinstance(name, str) and isinstance(about, dict) and isinstance(rows, list)):
        raise ValueError("its header has fields of the wrong type")
    coder = codec(name)
    tensors: dict[str, Any] = {}
    at = 0
    for row in rows:
        tensor, dtype, shape, offset, parameters = row
        if not isinstance(tensor, str) or tensor in tensors or dtype not in _DTYPES or offset != at:
            raise ValueError(f"tensor {str(tensor)[:40]!r} is described wrongly")
        if not all(type(d) is int and 0 <= d < 2**31 for d in shape) or len(shape) > 8:
            raise ValueError(f"tensor {tensor!r} has a wrong shape")
        size = math.prod(shape) * _DTYPES[dtype]
        if at + size > len(body):
            raise ValueError(f"tensor {tensor!r} ends past the end")
        values = coder.decode(Encoded(dtype, tuple(_number(p) for p in parameters), body[at : at + size]))
        tensors[tensor] = values.reshape(shape)
        at += size
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes follow the last tensor")
    return WeightsBlob(Weights(tensors), name, about)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_FLOAT32:
        raise ValueError("a codec parameter is not a finite float32 number")
    return float(value)
