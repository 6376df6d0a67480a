"""The cap on weights and the bound on norms, at both sides of what decides them."""

from __future__ import annotations

import pytest

from apiary_coordinator.updates.limits import (
    FIRST_SHARE,
    expected_samples,
    median_norm,
    norm_bound,
    weight_cap,
)


@pytest.mark.parametrize(
    ("samples", "ratio", "cap"),
    [
        ([100], 3, 300),
        ([100, 900], 3, 300),  # of two the lower median is the smaller
        ([100, 900], 1, 100),
        ([100, 100, 100], 3, 100),  # a third each
        ([100, 200, 300], 3, 100),
        ([100] * 4, 3, 150),
        ([100] * 5, 3, 200),
        ([100] * 7, 3, 300),
        ([100] * 8, 3, 300),  # from here on the ratio decides
        ([100] * 8, 2.5, 250),
        ([10, 10, 1000, 1000], 3, 20),
        ([10, 10, 1000, 1000, 1000], 3, 1010),
        ([1, 1, 1, 1, 10**9], 3, 2),
        ([0, 0, 0], 3, 1),
        ([], 3, 3),
    ],
)
def test_the_cap(samples: list[int], ratio: float, cap: int) -> None:
    assert weight_cap(samples, len(samples), ratio) == cap
    assert weight_cap(samples[::-1], len(samples), ratio) == cap


def test_of_a_cohort_larger_than_the_goal_any_may_be_the_first() -> None:
    samples = [10, 20, 30, 400, 500, 600]
    assert weight_cap(samples, 6, 100) == 460  # half of 10 + 20 + 30 + 400 + 460
    assert weight_cap(samples, 3, 100) == 10  # the two smallest bear no more


def test_what_a_node_expects_to_train_on() -> None:
    assert expected_samples(100, 0.1) == 90
    assert expected_samples(1, 0.9) == 1
    assert expected_samples(0, 0.0) == 1


def test_the_bound_follows_the_last_closed_round() -> None:
    assert norm_bound(2.0, 50.0, 3.0, 1e6) == 6.0
    assert norm_bound(2.0, 50.0, 3.0, 5.0) == 5.0
    assert norm_bound(1 / 3, 50.0, 1.0, 1e6) == 0.333333


@pytest.mark.parametrize("last", [None, 0.0])
def test_without_one_it_is_a_share_of_the_model(last: float | None) -> None:
    assert norm_bound(last, 50.0, 3.0, 1e6) == pytest.approx(3 * FIRST_SHARE * 50)
    assert norm_bound(last, 50.0, 3.0, 2.0) == 2.0


def test_a_model_of_zeros_bounds_nothing() -> None:
    assert norm_bound(None, 0.0, 3.0, 1e6) == 1e6


def test_of_two_norms_the_smaller_is_the_median() -> None:
    assert median_norm([5.0, 1.0]) == 1.0
    assert median_norm([5.0, 1.0, 3.0]) == 3.0
    assert median_norm([]) == 0.0


def test_a_first_update_may_be_as_long_as_the_model_times_the_clip() -> None:
    """The share of the model's norm that was measured on every recipe (decision 19)."""
    assert norm_bound(None, 4.0, 3.0, 1e9) == 12.0
