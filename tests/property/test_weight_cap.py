"""The cap on weights: what one node may weigh against the others, whatever it says of itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from apiary_coordinator.updates.limits import weight_cap

SAMPLES = st.one_of(st.integers(1, 30), st.integers(1, 10**6), st.just(2**40))
COHORT = st.integers(1, 40).flatmap(lambda n: st.lists(SAMPLES, min_size=n, max_size=n))
RATIO = st.floats(1, 20)


def lower_median(samples: list[int]) -> int:
    return sorted(samples)[(len(samples) - 1) // 2]


@given(COHORT, RATIO)
@settings(max_examples=400)
def test_no_claim_weighs_more_than_half_of_the_others(samples: list[int], ratio: float) -> None:
    """Each node in turn claims any number at all; the others weigh what their statuses say, capped too."""
    cap = weight_cap(samples, len(samples), ratio)
    assert 1 <= cap <= max(1, int(ratio * lower_median(samples)))
    if len(samples) >= 3:
        for i in range(len(samples)):
            others = sum(min(n, cap) for k, n in enumerate(samples) if k != i)
            assert 2 * cap <= others


@given(COHORT, RATIO)
@settings(max_examples=400)
def test_it_is_the_largest_that_holds(samples: list[int], ratio: float) -> None:
    cap = weight_cap(samples, len(samples), ratio)
    more = cap + 1
    over = more > int(ratio * lower_median(samples))
    if len(samples) >= 3:
        heaviest = max(min(n, more) for n in samples)
        over = over or 2 * more > sum(min(n, more) for n in samples) - heaviest
    assert over


@given(COHORT, RATIO, st.data())
@settings(max_examples=300)
def test_whoever_of_a_larger_cohort_is_first(samples: list[int], ratio: float, data: st.DataObject) -> None:
    goal = data.draw(st.integers(1, len(samples)))
    cap = weight_cap(samples, goal, ratio)
    first = data.draw(st.permutations(samples))[:goal]
    if goal >= 3:
        others = sum(min(n, cap) for n in first[1:])
        assert 2 * cap <= others


@given(COHORT, RATIO, st.integers(1, 2**40), st.data())
@settings(max_examples=300)
def test_a_claim_about_itself_lifts_the_cap_no_further_than_an_honest_node_could(
    samples: list[int], ratio: float, claim: int, data: st.DataObject
) -> None:
    """Its own number counts in the median and among the others' sum only up to what they bear themselves."""
    i = data.draw(st.integers(0, len(samples) - 1))
    lied = [*samples[:i], claim, *samples[i + 1 :]]
    rest = samples[:i] + samples[i + 1 :]
    if len(samples) >= 3:
        assert 2 * weight_cap(lied, len(lied), ratio) <= sum(rest)
