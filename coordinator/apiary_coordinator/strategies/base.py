"""What a strategy is: `init` and `apply` with explicit state, no I/O and no chance."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apiary.tensors import Weights
from apiary.wire.messages import Plan

Mean = Mapping[str, NDArray[np.float64]]
"""The sample-weighted mean of the round's updates (new minus old weights), float64 by tensor name."""


class Strategy(Protocol):
    """A plug-in module of `apiary_coordinator.strategies` has these functions."""

    def plan(self, plan: Plan, options: Mapping[str, Any]) -> Plan:
        """The plan with what this strategy asks of the nodes. Raises SettingsError for unknown options."""

    def init(self, weights: Weights) -> Weights:
        """The server's state before the first round; no tensors where a strategy has none."""

    def apply(self, state: Weights, weights: Weights, mean: Mean) -> tuple[Weights, Weights]:
        """State and weights after a round."""


def moved(weights: Weights, mean: Mean) -> Weights:
    """`weights + mean`, added in float64 and rounded once to float32."""
    return Weights({name: (t + mean[name]).astype(np.float32) for name, t in weights.items()})
