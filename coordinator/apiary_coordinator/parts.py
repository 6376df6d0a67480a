"""The parts of a coordinator beside its runs, put together: who registers where."""

from __future__ import annotations

from collections.abc import Sequence

from apiary_coordinator.feature import Desk, Feature
from apiary_coordinator.operators import Operators


def features(desk: Desk) -> Sequence[Feature]:
    """Every feature that the settings ask for."""
    operators = Operators(desk.outlet, desk.clock)
    return [operators]
