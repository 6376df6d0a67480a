"""What every strategy owes the coordinator, whichever file it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apiary.errors import SettingsError
from apiary.plugins import load, names
from apiary.tensors import Weights
from apiary.wire import blob
from apiary.wire.messages import Plan

PACKAGE = "apiary_coordinator.strategies"
NAMES = names(PACKAGE)
SHAPES = {"conv/kernel": (3, 3, 1, 2), "conv/bias": (2,), "scale": ()}


@pytest.fixture(params=NAMES)
def strategy(request: pytest.FixtureRequest) -> Any:
    return load(PACKAGE, request.param)


def weights(seed: int, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(seed)
    return Weights({n: rng.normal(scale=scale, size=s).astype(np.float32) for n, s in SHAPES.items()})


def mean(seed: int, scale: float = 0.1) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(scale=scale, size=s)) for n, s in SHAPES.items()}


def bits(w: Weights) -> bytes:
    return b"".join(t.tobytes() for t in w.values())


def test_there_are_the_two_that_the_settings_name() -> None:
    assert {"fedavg", "fedprox"} <= set(NAMES)


def test_the_plan_without_options_is_one_that_can_be_announced(strategy: Any) -> None:
    plan = strategy.plan(Plan(), {})
    assert isinstance(plan, Plan)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_planning_twice_changes_nothing_more(strategy: Any) -> None:
    """The exporter and each round plan for themselves; they must agree."""
    once = strategy.plan(Plan(), {})
    assert strategy.plan(once, {}) == once


def test_an_unknown_option_is_refused_by_name(strategy: Any) -> None:
    with pytest.raises(SettingsError, match="no_such_option"):
        strategy.plan(Plan(), {"no_such_option": 1})


def test_shapes_order_and_type_stay(strategy: Any) -> None:
    before = weights(1)
    _, after = strategy.apply(strategy.init(before), before, mean(2))
    assert list(after.shapes.items()) == list(before.shapes.items())
    assert all(t.dtype == np.float32 for t in after.values())
    assert after.is_finite()


def test_no_movement_leaves_the_weights(strategy: Any) -> None:
    before = weights(1)
    still = {n: np.zeros(s) for n, s in SHAPES.items()}
    _, after = strategy.apply(strategy.init(before), before, still)
    assert bits(after) == bits(before)


def test_it_moves_with_the_mean(strategy: Any) -> None:
    before = weights(1)
    step = mean(2)
    _, after = strategy.apply(strategy.init(before), before, step)
    along = sum(float(((after[n].astype(np.float64) - before[n]) * step[n]).sum()) for n in SHAPES)
    assert along > 0


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-8, 1.0, 1e4]))
@settings(max_examples=25)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_input_gives_the_same_bits_and_nothing_is_changed_in_place(
    name: str, seed: int, scale: float
) -> None:
    plug_in = load(PACKAGE, name)
    before, step = weights(seed), mean(seed + 1, scale)
    told_before, told_step = bits(before), {n: m.copy() for n, m in step.items()}
    first, second = (plug_in.apply(plug_in.init(before), before, step) for _ in range(2))
    assert bits(first[1]) == bits(second[1])
    assert bits(first[0]) == bits(second[0])
    assert bits(before) == told_before
    assert all(np.array_equal(step[n], told_step[n]) for n in SHAPES)


def test_state_survives_the_journal(strategy: Any) -> None:
    """State goes through a blob between rounds: the next step must not notice."""
    before = weights(1)
    state, after = strategy.apply(strategy.init(before), before, mean(2))
    kept = blob.decode(blob.encode(state), who="test").weights if len(state) else strategy.init(after)
    first, second = strategy.apply(state, after, mean(3)), strategy.apply(kept, after, mean(3))
    assert bits(first[1]) == bits(second[1])
