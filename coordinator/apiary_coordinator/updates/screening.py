"""What an update must hold before it may be counted. A bad update is data: a `Rejection` with its reason."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from apiary.errors import BlobError
from apiary.tensors import Shapes, Weights, differs
from apiary.wire import NodeId, blob
from apiary.wire.messages import Bounds, Offer

_BLOCK: Final = 1 << 16
_ROUNDING: Final = 1e-4
"""Of a norm summed in float32. A codec may add twice its error: our nodes clip what it gives back as well."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """An update that is not counted, and why."""

    why: str


def screen_offer(offer: Offer, bounds: Bounds, expected_codec: str) -> Rejection | None:
    """Check what can be checked before a byte of the update is taken."""
    if offer.update.bytes > bounds.max_bytes:
        return Rejection(f"the update has {offer.update.bytes} bytes, allowed are {bounds.max_bytes}")
    if offer.codec != expected_codec:
        return Rejection(f"the update comes in the codec {offer.codec!r}, the plan says {expected_codec!r}")
    return None


def screen_update(
    document: bytes | memoryview, offer: Offer, node: NodeId, bounds: Bounds, shapes: Shapes
) -> Rejection | None:
    """Why an update is refused: form, owner, shapes, finite numbers, magnitude, norm. Keeps no view of it."""
    try:
        found = blob.decode(document, who=f"node {node}")
    except BlobError as e:
        return Rejection(str(e))
    if found.codec != offer.codec:
        return Rejection(f"node {node}: the blob's codec is {found.codec!r}, the offer said {offer.codec!r}")
    expected = {"run": offer.run, "round": offer.round, "node": str(node), "samples": offer.samples}
    for key, value in expected.items():
        if found.about.get(key) != value:
            claimed = str(found.about.get(key))[:70]
            return Rejection(f"node {node}: the blob says {key} {claimed!r}, the offer said {value!r}")
    if why := differs(found.weights.shapes, shapes):
        return Rejection(f"node {node}: {why}")
    slack = _ROUNDING + 2 * blob.codec(found.codec).relative_error
    return _screen_numbers(found.weights, node, bounds, slack)


def _screen_numbers(update: Weights, node: NodeId, bounds: Bounds, slack: float) -> Rejection | None:
    square = 0.0
    for name, tensor in update.items():
        flat = tensor.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            part = flat[start : start + _BLOCK]
            # max and min let NaN through, so one comparison catches what is not finite as well.
            largest = max(float(part.max()), -float(part.min()))
            if not math.isfinite(largest):
                return Rejection(f"node {node}: tensor {name!r} holds a number that is not finite")
            if largest > bounds.max_abs:
                return Rejection(
                    f"node {node}: tensor {name!r} holds {largest:.4g}, allowed are +-{bounds.max_abs:g}"
                )
            square += float(np.dot(part, part))
    norm = math.sqrt(square)
    if norm > bounds.max_norm * (1 + slack):
        return Rejection(f"node {node}: the update's norm is {norm:.4g}, allowed is {bounds.max_norm:g}")
    return None
