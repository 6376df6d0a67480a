"""Adagrad over rounds: steps shrink as squared updates add up (Reddi et al. 2021, arXiv:2003.00295)."""

from pydantic import Field

from apiary.tensors import Tensors64, Weights
from apiary_coordinator.server_rules._adaptive import AdaptiveOptions, adapted


class Options(AdaptiveOptions):
    """Without momentum, as in the paper."""

    beta1: float = Field(0.0, ge=0, lt=1, description="momentum of the update")


def apply(state: Weights, weights: Weights, update: Tensors64, options: Options) -> tuple[Weights, Weights]:
    """v <- v + update^2."""
    return adapted(state, weights, update, options, lambda v, square: v + square)
