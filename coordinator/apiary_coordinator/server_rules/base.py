"""What a server rule is: a function of state, model and combined update, without I/O, chance or a memory."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apiary.options import StageOptions
from apiary.tensors import Tensors64, Weights

Float64 = NDArray[np.float64]


class ServerRule(Protocol):
    """A plug-in module of `apiary_coordinator.server_rules` has these.

    It may also have `sent(state, weights, options) -> Weights`: the model that nodes train on where that is
    not the one that is judged and finished. It is made of these two alone, so that a coordinator that was
    killed makes it again to the bit.
    """

    Options: type[StageOptions]

    def apply(
        self, state: Weights, weights: Weights, update: Tensors64, options: Any
    ) -> tuple[Weights, Weights]:
        """State and model after a round.

        `update` is relative to what was sent. The state is empty before a run's first round; afterwards it
        is what this function gave, through a blob of float32.
        """


def moved(weights: Weights, step: Mapping[str, NDArray[Any]], rate: float = 1.0) -> Weights:
    """`weights + rate * step`, in float64 and rounded once to float32."""
    return Weights({n: (t + rate * _float64(step[n])).astype(np.float32) for n, t in weights.items()})


def kept(state: Weights, part: str, like: Weights, first: float = 0.0) -> dict[str, Float64]:
    """A part of the state in float64; before the first round tensors as in `like`, filled with `first`."""
    names = {name: f"{part}/{name}" for name in like}
    return {
        name: _float64(state[key]) if key in state else np.full(like[name].shape, first)
        for name, key in names.items()
    }


def joined(**parts: Mapping[str, NDArray[Any]]) -> Weights:
    """One state of several parts: tensor `name` of part `m` is `m/name`."""
    return Weights({f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()})


def momentum(state: Weights, weights: Weights, update: Tensors64, share: float) -> Weights:
    """`share * m + update`, m of the state's part `m`; rounded, so that it is what the state will hold."""
    before = kept(state, "m", weights)
    return Weights({n: (share * m + update[n]).astype(np.float32) for n, m in before.items()})


def _float64(tensor: NDArray[Any]) -> Float64:
    return tensor.astype(np.float64, copy=False)
