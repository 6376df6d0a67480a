"""Momentum that nodes begin ahead by: FedACG (Kim et al. 2024, arXiv:2201.03172)."""

from pydantic import Field

from apiary.options import StageOptions
from apiary.tensors import Tensors64, Weights
from apiary_coordinator.server_rules.base import joined, kept, momentum, moved


class Options(StageOptions):
    """Momentum alone."""

    server_momentum: float = Field(
        0.7, ge=0, lt=1, description="share of the last step that is kept, and that nodes begin ahead by"
    )


def apply(state: Weights, weights: Weights, update: Tensors64, options: Options) -> tuple[Weights, Weights]:
    """m <- momentum m + update; w <- w + m. The state is m."""
    m = momentum(state, weights, update, options.server_momentum)
    return joined(m=m), moved(weights, m)


def sent(state: Weights, weights: Weights, options: Options) -> Weights:
    """w + momentum m: where the model will be if the next update is nothing. Updates are relative to it."""
    return moved(weights, kept(state, "m", weights), options.server_momentum)
