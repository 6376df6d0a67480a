from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apiary.errors import SettingsError
from apiary.tensors import Weights
from apiary.wire.messages import Plan
from apiary_coordinator.strategies import fedavg, fedprox
from apiary_coordinator.strategies.base import moved


def test_fedavg_adds_the_mean_and_leaves_the_plan() -> None:
    weights = Weights({"w": np.array([1.0, 2.0], np.float32)})
    _, after = fedavg.apply(fedavg.init(weights), weights, {"w": np.array([0.5, -2.0])})
    assert after["w"].tolist() == [1.5, 0.0]
    plan = Plan(epochs=3)
    assert fedavg.plan(plan, {}) == plan


def test_fedavg_refuses_options_by_name() -> None:
    with pytest.raises(SettingsError, match=r"fedavg has no options, got decay, mu"):
        fedavg.plan(Plan(), {"mu": 1, "decay": 2})


def test_the_sum_is_rounded_once() -> None:
    """In float32 steps 1 + 2**-25 + 2**-25 would stay 1; in float64 it reaches the next number."""
    weights = Weights({"w": np.array([1.0], np.float32)})
    assert moved(weights, {"w": np.array([2.0**-24 + 2.0**-30])})["w"][0] == np.float32(1 + 2.0**-23)


@pytest.mark.parametrize(
    ("options", "before", "mu"),
    [
        ({}, 0.0, 0.01),
        ({}, 0.3, 0.3),
        ({"mu": 0.5}, 0.3, 0.5),
        ({"mu": 1000}, 0.0, 1000.0),
    ],
)
def test_fedprox_asks_the_nodes_for_its_term(options: dict[str, Any], before: float, mu: float) -> None:
    assert fedprox.plan(Plan(proximal_mu=before), options).proximal_mu == mu


@pytest.mark.parametrize("mu", [0, -1, 1000.1, True, "much", float("nan"), None])
def test_fedprox_refuses_a_wrong_mu_and_says_what_is_right(mu: Any) -> None:
    with pytest.raises(SettingsError, match=r"strategy_options\.mu is .*, expected a number above 0"):
        fedprox.plan(Plan(), {"mu": mu})


def test_fedprox_refuses_other_options() -> None:
    with pytest.raises(SettingsError, match="fedprox knows `mu` only, got nu"):
        fedprox.plan(Plan(), {"mu": 1, "nu": 2})
