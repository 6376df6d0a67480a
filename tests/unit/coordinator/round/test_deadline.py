from __future__ import annotations

import pytest

from apiary_coordinator.round.deadline import FACTOR, SHORTEST_S, SPREAD, deadline_s, longest_s


def test_a_fixed_deadline_wins() -> None:
    assert deadline_s([[500.0] * 10], fixed=7.0, first=1800.0) == 7.0


@pytest.mark.parametrize("recent", [[], [[]], [[], []]])
def test_before_anything_is_known_it_is_the_first(recent: list[list[float]]) -> None:
    assert deadline_s(recent, fixed=None, first=1800.0) == 1800.0


def test_it_follows_what_nine_of_ten_needed() -> None:
    seconds = [100.0] * 9 + [100_000.0]
    assert deadline_s([seconds], fixed=None, first=1e6) == FACTOR * 100
    assert deadline_s([[*seconds, 200.0]], fixed=None, first=1e6) == FACTOR * 200


def test_only_the_last_three_rounds_count() -> None:
    assert deadline_s([[9999.0], [100.0], [100.0], [100.0]], fixed=None, first=1e6) == FACTOR * 100
    assert deadline_s([[900.0], [100.0], [100.0]], fixed=None, first=1e6) == FACTOR * 900


def test_one_that_sends_late_on_purpose_does_not_choose_the_deadline() -> None:
    assert deadline_s([[5.0, 5.0, 5.0, 14000.0]], fixed=None, first=14400) == SPREAD * 5
    assert deadline_s([[1.0, 1.1, 14000.0]], fixed=None, first=14400) == SHORTEST_S
    assert deadline_s([[600.0] * 9 + [30000.0] * 2], fixed=None, first=1e6) == SPREAD * 600
    assert longest_s([5.0, 200.0]) == SPREAD * 200, "of two neither is known to be the late one"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1.0, SHORTEST_S), (39.9, SHORTEST_S), (50.0, 150.0), (600.0, 1800.0), (601.0, 1800.0)],
)
def test_bounds(seconds: float, expected: float) -> None:
    assert deadline_s([[seconds]], fixed=None, first=1800.0) == expected


def test_a_short_first_deadline_bounds_even_the_shortest() -> None:
    assert deadline_s([[1.0]], fixed=None, first=30.0) == 30.0
