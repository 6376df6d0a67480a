"""Yogi over rounds: Adam whose second moment falls slowly (Reddi et al. 2021, arXiv:2003.00295)."""

import numpy as np
from pydantic import Field

from apiary.tensors import Tensors64, Weights
from apiary_coordinator.server_rules._adaptive import AdaptiveOptions, adapted


class Options(AdaptiveOptions):
    """As in the paper."""

    beta2: float = Field(0.99, ge=0, lt=1, description="share of the second moment that is kept")


def apply(state: Weights, weights: Weights, update: Tensors64, options: Options) -> tuple[Weights, Weights]:
    """v <- v - (1 - beta2) update^2 sign(v - update^2)."""
    part = 1 - options.beta2
    return adapted(state, weights, update, options, lambda v, square: v - part * square * np.sign(v - square))
