"""The combined update is added (McMahan et al. 2017, arXiv:1602.05629)."""

from apiary.options import StageOptions
from apiary.tensors import Tensors64, Weights
from apiary_coordinator.server_rules.base import moved


class Options(StageOptions):
    """None."""


def apply(state: Weights, weights: Weights, update: Tensors64, options: Options) -> tuple[Weights, Weights]:
    """Without a state."""
    return state, moved(weights, update)
