"""One signed byte per number and one scale per tensor: a quarter of the bytes, error 0.4 % of the largest."""

import numpy as np

from apiary.tensors import Array
from apiary.wire.codecs.base import Codec, Encoded, expect


class _Int8:
    relative_error = 0.5 / 127
    elementwise = True

    def encode(self, tensor: Array) -> Encoded:
        scale = float(np.max(np.abs(tensor), initial=0.0)) / 127 or 1.0
        return Encoded(
            "i1", (scale,), np.rint(tensor.reshape(-1) / np.float32(scale)).astype(np.int8).tobytes()
        )

    def most_bytes(self, numbers: int) -> int:
        return numbers

    def decode(self, encoded: Encoded) -> Array:
        expect(encoded, "i1", 1)
        return np.frombuffer(encoded.data, dtype=np.int8).astype(np.float32) * np.float32(
            encoded.parameters[0]
        )


CODEC: Codec = _Int8()
