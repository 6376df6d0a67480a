"""What every server rule owes the coordinator, whichever file it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.stand_ins.updates import SHAPES, flat

from apiary.plugins import names
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary.wire import blob
from apiary_coordinator import strategies

PACKAGE = "apiary_coordinator.server_rules"
NAMES = names(PACKAGE)
EMPTY = Weights({})


def chain(rule: str) -> strategies.Chain:
    return strategies.load(RunSettings(server_rule=rule))


@pytest.fixture(params=NAMES)
def rule(request: pytest.FixtureRequest) -> strategies.Chain:
    return chain(request.param)


def weights(seed: int, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(seed)
    return Weights({n: rng.normal(scale=scale, size=s).astype(np.float32) for n, s in SHAPES.items()})


def update(seed: int, scale: float = 0.1) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(scale=scale, size=s)) for n, s in SHAPES.items()}


def bits(w: Weights) -> bytes:
    return b"".join(t.tobytes() for t in w.values())


def test_there_are_those_that_the_manual_names() -> None:
    assert {"fedavg", "fedavgm", "fedacg", "fedadam", "fedyogi", "fedadagrad"} <= set(NAMES)


def test_shapes_order_and_type_stay(rule: strategies.Chain) -> None:
    before = weights(1)
    state, after = rule.apply(EMPTY, before, update(2))
    for made in (after, rule.sent(state, after)):
        assert list(made.shapes.items()) == list(before.shapes.items())
        assert all(t.dtype == np.float32 for t in made.values())
        assert made.is_finite()


def test_no_movement_leaves_the_weights(rule: strategies.Chain) -> None:
    before = weights(1)
    still = {n: np.zeros(s) for n, s in SHAPES.items()}
    state, after = rule.apply(EMPTY, before, still)
    assert bits(after) == bits(rule.sent(state, after)) == bits(before)


def test_before_the_first_round_the_model_itself_is_sent(rule: strategies.Chain) -> None:
    assert bits(rule.sent(EMPTY, weights(1))) == bits(weights(1))


def test_it_moves_with_the_update(rule: strategies.Chain) -> None:
    before, step = weights(1), update(2)
    _, after = rule.apply(EMPTY, before, step)
    moved = flat(after).astype(np.float64) - flat(before)
    assert float(moved @ flat(step)) > 0


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-8, 1.0, 1e4]))
@settings(max_examples=25)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_input_gives_the_same_bits_and_nothing_is_changed_in_place(
    name: str, seed: int, scale: float
) -> None:
    rule, before, step = chain(name), weights(seed), update(seed + 1, scale)
    told_before, told_step = bits(before), {n: m.copy() for n, m in step.items()}
    first, second = (rule.apply(EMPTY, before, step) for _ in range(2))
    assert bits(first[1]) == bits(second[1])
    assert bits(first[0]) == bits(second[0])
    assert bits(rule.sent(*first)) == bits(rule.sent(*second))
    assert bits(before) == told_before
    assert all(np.array_equal(step[n], told_step[n]) for n in SHAPES)


def test_a_state_through_the_journal_gives_the_same_bits(rule: strategies.Chain) -> None:
    """It goes through a blob between rounds, and after a kill what was sent is made again of it."""
    state, after = EMPTY, weights(1)
    for number in range(3):
        state, after = rule.apply(state, after, update(2 + number))
        kept = blob.decode(blob.encode(state), who="test").weights
        again = blob.decode(blob.encode(after), who="test").weights
        assert bits(rule.sent(kept, again)) == bits(rule.sent(state, after))
        here, there = rule.apply(state, after, update(9)), rule.apply(kept, again, update(9))
        assert bits(here[0]) == bits(there[0]) and bits(here[1]) == bits(there[1])


def test_a_state_names_the_tensors_that_it_is_of(rule: strategies.Chain) -> None:
    state, _ = rule.apply(EMPTY, weights(1), update(2))
    assert {name.split("/", 1)[1] for name in state} <= set(SHAPES)
    assert all(t.shape == SHAPES[name.split("/", 1)[1]] for name, t in state.items())
