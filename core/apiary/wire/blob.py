"""Weights as one msgpack document `[header, bin]`, named by the sha256 of its bytes.

The header lists the tensors (name, dtype, shape, offset, codec parameters), the bin is their bytes back
to back, so that decoding copies nothing: raw float32 comes out as views of the document.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import msgpack

from apiary.errors import BlobError, SettingsError
from apiary.plugins import load
from apiary.tensors import Array, Shapes, Weights
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
    with _refused(who):
        header, body = _opened(document, who)
        coder = codec(header.codec)
        tensors = {row.name: coder.decode(row.encoded(body)).reshape(row.shape) for row in header.rows}
        return WeightsBlob(Weights(tensors), header.codec, header.about)


class Numbers:
    """Where a document has its numbers: some of them are decoded without the others.

    Documents of one model and codec share what they have in common: each holds its parameters alone.
    """

    __slots__ = ("_body", "_layout", "_parameters")

    def __init__(self, document: bytes | memoryview, *, who: str, like: "Numbers | None" = None):
        """Raises BlobError as `decode` does; keeps no view of the document."""
        with _refused(who):
            header, body = _opened(document, who)
            layout = _Layout.of(header)
        self._body = len(document) - len(body)
        self._layout: _Layout = like._layout if like is not None and like._layout == layout else layout
        self._parameters = array("d", [p for row in header.rows for p in row.parameters])

    def part(self, read: Callable[[int, int], bytes], start: int, out: Array) -> None:
        """Fill the flat `out` with the numbers from `start` on, all tensors one after another.

        `read` gives so many bytes of the document from an offset on.
        """
        ends, done = self._layout.ends, 0
        for i in range(bisect_right(ends, start), len(ends)):
            if done == len(out):
                return
            first = ends[i - 1] if i else 0
            low, high = start + done - first, min(ends[i], start + len(out)) - first
            out[done : done + high - low] = self._decoded(i, read, low, high)
            done += high - low

    def _decoded(self, i: int, read: Callable[[int, int], bytes], low: int, high: int) -> Array:
        row, coder = self._layout.rows[i], codec(self._layout.codec)
        parameters = tuple(self._parameters[row.first_parameter : row.first_parameter + row.parameters])
        at, each = self._body + row.offset, _DTYPES[row.dtype]
        if coder.elementwise:
            data = read(at + low * each, (high - low) * each)
            return coder.decode(Encoded(row.dtype, parameters, data))
        return coder.decode(Encoded(row.dtype, parameters, read(at, row.numbers * each)))[low:high]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's numbers lie in the bin, and its parameters among those of all."""

    dtype: str
    numbers: int
    offset: int
    first_parameter: int
    parameters: int


@dataclass(frozen=True, slots=True)
class _Layout:
    codec: str
    rows: tuple[_Place, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, header: "_Header") -> "_Layout":
        rows, parameters = header.rows, list(accumulate((len(r.parameters) for r in header.rows), initial=0))
        places = (
            _Place(row.dtype, row.numbers, row.offset, first, len(row.parameters))
            for row, first in zip(rows, parameters, strict=False)
        )
        return cls(header.codec, tuple(places), tuple(accumulate(row.numbers for row in rows)))


@dataclass(frozen=True, slots=True)
class _Row:
    """A tensor as the header describes it; `offset` is in the bin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    parameters: tuple[float, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numbers * _DTYPES[self.dtype]

    def encoded(self, body: memoryview) -> Encoded:
        return Encoded(self.dtype, self.parameters, body[self.offset : self.offset + self.bytes])


@dataclass(frozen=True, slots=True)
class _Header:
    codec: str
    about: Mapping[str, Any]
    rows: list[_Row]


@contextmanager
def _refused(who: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException, SettingsError) as e:
        raise BlobError(
            f"{who}: the weights blob does not hold: {type(e).__name__}: {str(e)[:120]}"
        ) from None


def _opened(document: bytes | memoryview, who: str) -> tuple[_Header, memoryview]:
    """A document's header, checked, and its bin."""
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
    header = _header(unpacker, view[1 : 1 + MAX_HEADER_BYTES])
    body = bin_view(view, 1 + unpacker.tell())
    return _checked(header, len(body)), body


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


def _checked(header: Any, size: int) -> _Header:
    if not isinstance(header, dict) or header.get("v") != 1:
        raise ValueError("its header is not of version 1")
    name, about, rows = header["codec"], header["about"], header["tensors"]
    if not (isinstance(name, str) and isinstance(about, dict) and isinstance(rows, list)):
        raise ValueError("its header has fields of the wrong type")
    found: dict[str, _Row] = {}
    at = 0
    for row in rows:
        tensor, dtype, shape, offset, parameters = row
        if not isinstance(tensor, str) or tensor in found or dtype not in _DTYPES or offset != at:
            raise ValueError(f"tensor {str(tensor)[:40]!r} is described wrongly")
        if not all(type(d) is int and 0 <= d < 2**31 for d in shape) or len(shape) > 8:
            raise ValueError(f"tensor {tensor!r} has a wrong shape")
        found[tensor] = _Row(tensor, dtype, tuple(shape), at, tuple(_number(p) for p in parameters))
        at += found[tensor].bytes
        if at > size:
            raise ValueError(f"tensor {tensor!r} ends past the end")
    if at != size:
        raise ValueError(f"{size - at} bytes follow the last tensor")
    return _Header(name, about, list(found.values()))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_FLOAT32:
        raise ValueError("a codec parameter is not a finite float32 number")
    return float(value)
