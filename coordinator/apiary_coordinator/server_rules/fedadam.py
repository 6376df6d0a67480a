"""Adam over rounds (Reddi et al. 2021, arXiv:2003.00295)."""

from pydantic import Field

from apiary.tensors import Tensors64, Weights
from apiary_coordinator.server_rules._adaptive import AdaptiveOptions, adapted


class Options(AdaptiveOptions):
    """As in the paper."""

    beta2: float = Field(0.99, ge=0, lt=1, description="share of the second moment that is kept")


def apply(state: Weights, weights: Weights, update: Tensors64, options: Options) -> tuple[Weights, Weights]:
    """v <- beta2 v + (1 - beta2) update^2."""
    keep = options.beta2
    return adapted(state, weights, update, options, lambda v, square: keep * v + (1 - keep) * square)
