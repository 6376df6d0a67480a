"""Clipping: an update is scaled down until its norm is within what the round allows. Pure.

The whole update by one factor, as in DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963): its direction stays.
"""

import math
from typing import Final

import numpy as np

from apiary.tensors import Weights, square_sum
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
    if codec is None:
        return sum(map(square_sum, update.values()))
    return sum(square_sum(codec.decode(codec.encode(tensor))) for tensor in update.values())
