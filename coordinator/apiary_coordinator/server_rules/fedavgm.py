"""Heavy-ball momentum over rounds (Hsu et al. 2019, arXiv:1909.06335)."""

from pydantic import Field

from apiary.options import StageOptions
from apiary.tensors import Tensors64, Weights
from apiary_coordinator.server_rules.base import joined, momentum, moved


class Options(StageOptions):
    """Momentum, and the size of the server's steps."""

    server_momentum: float = Field(0.5, ge=0, lt=1, description="share of the last step that is kept")
    server_rate: float = Field(1.0, gt=0, le=10, description="size of the server's steps")


def apply(state: Weights, weights: Weights, update: Tensors64, options: Options) -> tuple[Weights, Weights]:
    """m <- momentum m + update; w <- w + rate m. The state is m."""
    m = momentum(state, weights, update, options.server_momentum)
    return joined(m=m), moved(weights, m, options.server_rate)
