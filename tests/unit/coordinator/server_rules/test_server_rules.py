"""Each server rule against its paper's formula, over rounds, in plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apiary.tensors import Weights
from apiary_coordinator.server_rules import fedacg, fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from apiary_coordinator.server_rules.base import moved

ROUNDS = 5
START = np.array([1.0, -2.0, 0.5])


def deltas(seed: int = 1) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(scale=0.1, size=3) for _ in range(ROUNDS)]


def model(values: NDArray[Any]) -> Weights:
    return Weights({"w": values.astype(np.float32)})


def after(rule: Any, updates: list[NDArray[Any]], **options: Any) -> NDArray[Any]:
    """The model after all rounds."""
    state, weights = Weights({}), model(START)
    for update in updates:
        state, weights = rule.apply(state, weights, {"w": update}, rule.Options(**options))
    return weights["w"]


def test_fedavg_adds_the_update() -> None:
    assert after(fedavg, deltas()) == pytest.approx(START + sum(deltas()), abs=1e-6)


def test_the_sum_is_rounded_once() -> None:
    """In float32 steps 1 + 2**-25 + 2**-25 would stay 1; in float64 it reaches the next number."""
    weights = Weights({"w": np.array([1.0], np.float32)})
    assert moved(weights, {"w": np.array([2.0**-24 + 2.0**-30])})["w"][0] == np.float32(1 + 2.0**-23)


@pytest.mark.parametrize(("share", "rate"), [(0.0, 1.0), (0.5, 1.0), (0.9, 0.3)])
def test_fedavgm(share: float, rate: float) -> None:
    w, m = START, np.zeros(3)
    for delta in deltas():
        m = share * m + delta
        w = w + rate * m
    assert after(fedavgm, deltas(), server_momentum=share, server_rate=rate) == pytest.approx(w, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.7, 0.85])
def test_fedacg(share: float) -> None:
    """The other way to write it: x, which is sent, moves by the update and the old momentum ahead."""
    state, w = Weights({}), model(START)
    x, m = START, np.zeros(3)
    for delta in deltas():
        options = fedacg.Options(server_momentum=share)
        assert fedacg.sent(state, w, options)["w"] == pytest.approx(x, abs=1e-6)
        state, w = fedacg.apply(state, w, {"w": delta}, options)
        m, before = share * m + delta, m
        x = x + delta + share * m
        assert w["w"] == pytest.approx(x - share * m, abs=1e-6)
        assert state["m/w"] == pytest.approx(m, abs=1e-6)
        x, m = w["w"] + share * m, share * before + delta


def adaptive(
    second: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]], rate: float, beta: float, tau: float
) -> NDArray[Any]:
    w, m, v = START, np.zeros(3), np.full(3, tau**2)
    for delta in deltas():
        m = beta * m + (1 - beta) * delta
        v = second(v, delta)
        w = w + rate * m / (np.sqrt(v) + tau)
    return w


def test_fedadam() -> None:
    expected = adaptive(lambda v, d: 0.99 * v + 0.01 * d**2, 0.01, 0.9, 1e-3)
    assert after(fedadam, deltas()) == pytest.approx(expected, abs=1e-6)


def test_fedyogi() -> None:
    expected = adaptive(lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2), 0.01, 0.9, 1e-3)
    assert after(fedyogi, deltas()) == pytest.approx(expected, abs=1e-6)


def test_fedadagrad() -> None:
    expected = adaptive(lambda v, d: v + d**2, 0.01, 0.0, 1e-3)
    assert after(fedadagrad, deltas()) == pytest.approx(expected, abs=1e-6)


def test_options_of_the_adaptive_ones() -> None:
    expected = adaptive(lambda v, d: 0.5 * v + 0.5 * d**2, 0.1, 0.3, 0.01)
    found = after(fedadam, deltas(), server_rate=0.1, beta1=0.3, beta2=0.5, tau=0.01)
    assert found == pytest.approx(expected, abs=1e-6)
