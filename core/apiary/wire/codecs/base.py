"""What a codec is: one float32 tensor to bytes and back, without state and without chance."""

from dataclasses import dataclass
from typing import Protocol

from apiary.tensors import Array


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor's bytes, their dtype (`f4`, `f2`, `i1`, `u1`, little-endian) and what decoding needs."""

    dtype: str
    parameters: tuple[float, ...]
    data: bytes | memoryview


class Codec(Protocol):
    """`decode(encode(x))` gives a flat float32 array, within `relative_error` of x's largest magnitude."""

    relative_error: float
    elementwise: bool
    """Whether the bytes of some numbers, with the parameters of all, decode to those numbers."""

    def encode(self, tensor: Array) -> Encoded:
        """Bytes for a finite float32 tensor of any shape."""

    def most_bytes(self, numbers: int) -> int:
        """The most bytes of data that `encode` gives for a tensor of so many numbers."""

    def decode(self, encoded: Encoded) -> Array:
        """Flat float32 values. Raises ValueError where dtype or parameters are not this codec's."""


def expect(encoded: Encoded, dtype: str, parameters: int) -> None:
    """Raise ValueError unless the encoded tensor has this dtype and number of parameters."""
    if encoded.dtype != dtype or len(encoded.parameters) != parameters:
        raise ValueError(f"dtype {encoded.dtype} with {len(encoded.parameters)} parameters, expected {dtype}")
