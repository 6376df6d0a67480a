"""What one update may be: how much it weighs in the mean, and how far it moves the model. Pure.

What a node reports of itself is a claim, and its update is whatever it sends. A cap on weights that follows
from the whole cohort, and a bound on norms that follows from the round before, limit what a false one does to
the mean; docs/decisions/0019-weights-and-norms-are-bounded.md has the figures.
"""

from collections.abc import Iterable, Sequence
from typing import Final

FIRST_SHARE: Final = 1.0
"""Of the start model's norm: what stands for the median where there is no round before."""


def weight_cap(samples: Sequence[int], goal: int, ratio: float) -> int:
    """The most samples that one update of this cohort counts for, at least 1.

    `samples` are what each drawn node expects to train on, `goal` is how many updates end the round. The cap
    is the largest whole number that is at most `ratio` times the lower median of `samples` and, with a goal
    of three or more, at most half of what the `goal` - 1 smallest weigh together under this very cap:

        2 c <= sum of min(n, c) over the goal - 1 smallest n

    So whoever claims any number weighs at most half of the others, whichever of the drawn are first and
    whatever it had reported itself before: without it the others' sum is no smaller. The difference of the
    two sides is concave in c and not negative at c = 1, so the numbers that hold form an interval, and the
    largest is found by halving.
    """
    known = sorted(max(1, n) for n in samples) or [1]
    cap = max(1, int(ratio * known[(len(known) - 1) // 2]))
    if goal < 3:
        return cap
    others = known[: goal - 1]

    def holds(c: int) -> bool:
        return 2 * c <= sum(min(n, c) for n in others)

    low, high = 1, cap
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def expected_samples(reported: int, validation_share: float) -> int:
    """What a node that reports so many samples trains on, at least 1: the rest only validates."""
    return max(1, int(reported * (1 - validation_share)))


def norm_bound(last: float | None, model: float, clip: float, most: float) -> float:
    """The largest norm of an update in a round: at most `most`, with six digits.

    `clip` times the median norm of the last closed round; where there is none, times `FIRST_SHARE` of the
    norm of the `model` that the round starts from. A model or a median of 0 bounds nothing.
    """
    bound = clip * (last or FIRST_SHARE * model)
    return min(most, float(f"{bound:.6g}")) if bound > 0 else most


def median_norm(norms: Iterable[float]) -> float:
    """The lower median: of two updates the smaller decides. 0 where there is none."""
    found = sorted(norms)
    return found[(len(found) - 1) // 2] if found else 0.0
