"""The update that a node sends: new weights minus old ones, as a blob that says whose it is."""

from __future__ import annotations

from apiary.tensors import Weights
from apiary.wire import blob


def encode_update(
    before: Weights, after: Weights, *, codec: str, run: str, round_number: int, node: str, samples: int
) -> bytes:
    """The blob of `after - before`. Raises ModelError where the two do not fit together."""
    about = {"run": run, "round": round_number, "node": node, "samples": samples}
    return blob.encode(after - before, codec_name=codec, about=about)
