"""FedProx: FedAvg whose nodes are held near the global model by `mu/2 * |w - w_global|^2`.

Li et al. 2020, arXiv:1812.06127. The term lives in the nodes' training step; `mu` defaults to 0.01.
"""

from collections.abc import Mapping
from typing import Any

from apiary.errors import SettingsError
from apiary.tensors import Weights
from apiary.wire.messages import Plan
from apiary_coordinator.strategies.base import Mean, moved

_DEFAULT_MU = 0.01


def plan(plan: Plan, options: Mapping[str, Any]) -> Plan:
    """The plan with the proximal term: option `mu`, else the plan's own `proximal_mu`, else 0.01."""
    if unknown := set(options) - {"mu"}:
        raise SettingsError(
            f"run.strategy_options: fedprox knows `mu` only, got {', '.join(sorted(unknown))}"
        )
    mu = options.get("mu", plan.proximal_mu or _DEFAULT_MU)
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not 0 < mu <= 1000:
        raise SettingsError(f"run.strategy_options.mu is {mu!r}, expected a number above 0 and up to 1000")
    return plan.model_copy(update={"proximal_mu": float(mu)})


def init(weights: Weights) -> Weights:
    """No state."""
    return Weights({})


def apply(state: Weights, weights: Weights, mean: Mean) -> tuple[Weights, Weights]:
    """Add the mean update, as FedAvg does."""
    return state, moved(weights, mean)
