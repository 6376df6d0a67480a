"""How long a round may take, from how long the fleet took before. Pure."""

import math
from collections.abc import Collection, Sequence
from statistics import median_high
from typing import Final

FACTOR: Final = 3.0
"""A round may take this many times what nine of ten nodes needed: late ones are rarer than slow ones."""
LOOKED_AT: Final = 3
"""Rounds; a fleet changes."""
SHORTEST_S: Final = 120.0
"""Below this a busy machine or a slow card would cost a round."""
SPREAD: Final = 100.0
"""No round waits for more than this many times what half of the nodes needed.

Of a few, nine of ten are all, and one that sends late on purpose would choose the deadline. The slowest of an
honest fleet have older processors and more pictures: one of four simulated nodes, whose paces and shares
differed about fivefold, took 62 times the median.
"""


def deadline_s(recent: Collection[Sequence[float]], *, fixed: float | None, first: float) -> float:
    """Seconds for the next round. `recent`: what each contributor of the last rounds took, newest last.

    A fixed deadline wins; before anything is known it is `first`, which is also the most.
    """
    if fixed is not None:
        return fixed
    seconds = sorted(s for one in list(recent)[-LOOKED_AT:] for s in one)
    if not seconds:
        return first
    p90 = seconds[math.ceil(0.9 * len(seconds)) - 1]
    return min(first, max(SHORTEST_S, FACTOR * p90), longest_s(seconds))


def longest_s(seconds: Collection[float]) -> float:
    """The longest that a round may take whose updates, or those of the last ones, took so many seconds each.

    Of two the slower counts: neither can be told from one that sends late on purpose.
    """
    return max(SHORTEST_S, SPREAD * median_high(seconds))
