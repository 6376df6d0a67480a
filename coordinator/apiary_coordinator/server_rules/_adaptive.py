"""What FedAdam, FedYogi and FedAdagrad share (Reddi et al. 2021, arXiv:2003.00295, algorithm 2)."""

from collections.abc import Callable

import numpy as np
from pydantic import Field

from apiary.options import StageOptions
from apiary.tensors import Tensors64, Weights
from apiary_coordinator.server_rules.base import Float64, joined, kept, moved

SecondMoment = Callable[[Float64, Float64], Float64]
"""The next v of the last one and the squared update."""


class AdaptiveOptions(StageOptions):
    """Step size, momentum, and how small a second moment still counts."""

    server_rate: float = Field(0.01, gt=0, le=10, description="size of the server's steps")
    beta1: float = Field(0.9, ge=0, lt=1, description="momentum of the update")
    tau: float = Field(1e-3, gt=0, le=1, description="adaptivity: added to the root of the second moment")


def adapted(
    state: Weights, weights: Weights, update: Tensors64, options: AdaptiveOptions, second: SecondMoment
) -> tuple[Weights, Weights]:
    """m <- beta1 m + (1 - beta1) update; v by `second`; w <- w + rate m / (sqrt(v) + tau).

    The state is m, from 0, and v, from tau squared. There is no correction of the first rounds' bias, as in
    the paper.
    """
    m, v, step = {}, {}, {}
    first_m, first_v = kept(state, "m", weights), kept(state, "v", weights, options.tau**2)
    for name, delta in update.items():
        m[name] = options.beta1 * first_m[name] + (1 - options.beta1) * delta
        v[name] = second(first_v[name], np.square(delta))
        step[name] = m[name] / (np.sqrt(v[name]) + options.tau)
    return joined(m=m, v=v), moved(weights, step, options.server_rate)
