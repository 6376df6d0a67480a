"""The weighted sum is exact: against fractions, in any order, in any batches, at the bounds' extremes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apiary.tensors import Weights
from apiary.wire.messages import Bounds
from apiary_coordinator.updates.exact_sum import ExactSum, grid_bits

SHAPES = {"a": (2, 2), "b": (3,)}
NUMBERS = 7


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Bounds, list[tuple[list[float], int]]]:
    """Bounds, and up to eight updates within them, often at their very edge."""
    bounds = Bounds(
        max_abs=draw(st.floats(1e-6, 1e6, allow_nan=False)),
        max_samples=draw(st.integers(1, 2**24)),
    )
    edge = float(np.float32(bounds.max_abs))
    if edge > bounds.max_abs:
        edge = float(np.nextafter(np.float32(edge), np.float32(0)))
    number = st.one_of(
        st.floats(-edge, edge, width=32, allow_nan=False),
        st.sampled_from([edge, -edge, 0.0, -0.0, 2.0**-149]),
    )
    update = st.tuples(
        st.lists(number, min_size=NUMBERS, max_size=NUMBERS),
        st.one_of(st.integers(1, bounds.max_samples), st.just(bounds.max_samples)),
    )
    return bounds, draw(st.lists(update, min_size=1, max_size=8))


def weights(numbers: list[float]) -> Weights:
    flat = np.array(numbers, np.float32)
    return Weights({"a": flat[:4].reshape(2, 2), "b": flat[4:]})


def summed(updates: list[tuple[list[float], int]], bits: int) -> ExactSum:
    total = ExactSum(SHAPES, bits)
    for numbers, samples in updates:
        total.add(weights(numbers), samples)
    return total


def flat(total: ExactSum) -> NDArray[Any]:
    return np.concatenate([m.ravel() for m in total.mean().values()])


def on_grid(number: float, samples: int, bits: int) -> int:
    """The whole number of grid steps of one term: rounded once, halves to even."""
    return round(Fraction(number) * samples * Fraction(2) ** bits)


@given(rounds())
@settings(max_examples=300)
def test_the_sum_is_that_of_whole_numbers(case: tuple[Bounds, list[tuple[list[float], int]]]) -> None:
    bounds, updates = case
    bits = grid_bits(bounds, len(updates))
    total = summed(updates, bits)
    samples = sum(n for _, n in updates)
    for i, got in enumerate(flat(total)):
        steps = sum(on_grid(numbers[i], n, bits) for numbers, n in updates)
        assert abs(steps) <= 2**53
        # One rounding: that of the division, which IEEE 754 does correctly.
        assert got == float(Fraction(steps) / samples / Fraction(2) ** bits)


@given(rounds(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_any_order_gives_the_same_bits(
    case: tuple[Bounds, list[tuple[list[float], int]]], chance: object
) -> None:
    bounds, updates = case
    bits = grid_bits(bounds, len(updates))
    shuffled = updates.copy()
    chance.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis' randoms() are random.Random
    first, second = flat(summed(updates, bits)), flat(summed(shuffled, bits))
    # -0.0 and 0.0 would differ here, as any other bit.
    assert first.tobytes() == second.tobytes()


@given(rounds(), st.integers(0, 8))
@settings(max_examples=200)
def test_any_split_into_batches_gives_the_same_bits(
    case: tuple[Bounds, list[tuple[list[float], int]]], cut: int
) -> None:
    bounds, updates = case
    bits = grid_bits(bounds, len(updates))
    whole = summed(updates, bits)
    parts = [summed(part, bits) for part in (updates[:cut], updates[cut:]) if part]
    steps = sum(p._steps for p in parts)
    assert np.array_equal(steps, whole._steps)
    assert sum(p.samples for p in parts) == whole.samples


@given(rounds())
@settings(max_examples=200)
def test_the_error_is_below_one_grid_step_a_sample(
    case: tuple[Bounds, list[tuple[list[float], int]]],
) -> None:
    bounds, updates = case
    bits = grid_bits(bounds, len(updates))
    samples = sum(n for _, n in updates)
    for i, got in enumerate(flat(summed(updates, bits))):
        exact = sum((Fraction(numbers[i]) * n for numbers, n in updates), Fraction()) / samples
        allowed = Fraction(len(updates), 2 * samples) / Fraction(2) ** bits
        assert abs(Fraction(float(got)) - exact) <= allowed + abs(exact) * Fraction(1, 2**52)


@given(st.floats(1e-6, 1e6, allow_nan=False), st.integers(1, 2**24), st.integers(1, 20_000))
def test_the_grid_never_lets_a_partial_sum_pass_what_float64_holds(
    max_abs: float, max_samples: int, updates: int
) -> None:
    bits = grid_bits(Bounds(max_abs=max_abs, max_samples=max_samples), updates)
    term = on_grid(max_abs, max_samples, bits)
    # The rounding of each term may add half a step; 2**53 is where float64 begins to skip whole numbers.
    assert term * updates <= 2**53
    assert math.ldexp(float(max_samples), bits) > 0
