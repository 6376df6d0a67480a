"""Federated averaging: the next model is the sample-weighted mean (McMahan et al. 2017, arXiv:1602.05629)."""

from collections.abc import Mapping
from typing import Any

from apiary.errors import SettingsError
from apiary.tensors import Weights
from apiary.wire.messages import Plan
from apiary_coordinator.strategies.base import Mean, moved


def plan(plan: Plan, options: Mapping[str, Any]) -> Plan:
    """The plan as it is. FedAvg has no options."""
    if options:
        raise SettingsError(f"run.strategy_options: fedavg has no options, got {', '.join(sorted(options))}")
    return plan


def init(weights: Weights) -> Weights:
    """No state."""
    return Weights({})


def apply(state: Weights, weights: Weights, mean: Mean) -> tuple[Weights, Weights]:
    """Add the mean update."""
    return state, moved(weights, mean)
