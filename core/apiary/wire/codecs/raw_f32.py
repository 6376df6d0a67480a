"""The numbers as they are: little-endian float32. Nothing is lost, nothing is copied on decoding."""

import numpy as np

from apiary.tensors import Array
from apiary.wire.codecs.base import Codec, Encoded, expect


class _RawF32:
    relative_error = 0.0
    elementwise = True

    def encode(self, tensor: Array) -> Encoded:
        flat = np.ascontiguousarray(tensor, dtype="<f4").reshape(-1)
        return Encoded("f4", (), flat.data.cast("B") if flat.size else b"")

    def most_bytes(self, numbers: int) -> int:
        return 4 * numbers

    def decode(self, encoded: Encoded) -> Array:
        expect(encoded, "f4", 0)
        return np.frombuffer(encoded.data, dtype="<f4")


CODEC: Codec = _RawF32()
