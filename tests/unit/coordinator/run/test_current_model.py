"""Which run's model the fleet predicts with."""

from __future__ import annotations

import pytest

from apiary_coordinator.run.current_model import Bar, takes_place
from apiary_coordinator.run.stopping import Best


@pytest.mark.parametrize(
    ("accuracy", "bar", "during", "at_the_end"),
    [
        (0.5, Bar(), False, True),
        (0.5, Bar(current=0.6), False, True),
        (0.6, Bar(current=0.6), True, True),
        (0.5, Bar(start=0.6, current=0.4), False, False),
        (0.6, Bar(start=0.6), True, True),
        (0.65, Bar(start=0.6, current=0.7), False, True),
        (0.7, Bar(start=0.6, current=0.7), True, True),
    ],
    ids=[
        "other labels, from scratch: at its end",
        "from scratch and worse: at its end",
        "from scratch and as good: at once",
        "worse than its own ancestor: never",
        "other labels, as good as its ancestor",
        "better than its ancestor, not than what is there: at its end",
        "better than both",
    ],
)
def test_the_table(accuracy: float, bar: Bar, during: bool, at_the_end: bool) -> None:
    best = Best(3, accuracy, 1.0)
    assert takes_place(best, bar, over=False) is during
    assert takes_place(best, bar, over=True) is at_the_end
