"""Clipping: an update is scaled down until its norm is within what the round allows. Pure.

The whole update by one factor, as in DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963): its direction stays.
"""

import math
from typing import Final

import numpy as np

from apiary.tensors import Weights
from apiary.wire.codecs.base import Codec

_MARGIN: Final = 1e-6
"""What rounding to float32 may add to a norm."""


def clipped(update: Weights, max_norm: float, codec: Codec) -> Weights:
    """The update with a Euclidean norm of at most `max_norm`, also as the codec gives it back.

    The very same object where it is within the bound. A codec may round upwards; because all of them scale
    with their tensor, one factor serves the update and what is decoded of it.
    """
    norm = math.sqrt(max(_square(update, None), _square(update, codec)))
    if norm <= max_norm:
        return update
    factor = np.float32(max_norm / norm * (1 - _MARGIN))
    return Weights({name: tensor * factor for name, tensor in update.items()})


def _square(update: Weights, codec: Codec | None) -> float:
    """The squared norm, of what the codec gives back where there is one; a tensor at a time."""
    total = 0.0
    for tensor in update.values():
        decoded = tensor if codec is None else codec.decode(codec.encode(tensor))
        flat = decoded.reshape(-1).astype(np.float64)
        total += float(np.dot(flat, flat))
    return total
