from __future__ import annotations

from typing import Any

import pytest

from apiary.settings import RunSettings
from apiary_coordinator.run.stopping import Best, best_of, stop


@pytest.mark.parametrize(
    ("closed", "best"),
    [
        ([], None),
        ([(1, 0.5, 1.0)], Best(1, 0.5, 1.0)),
        ([(1, 0.5, 1.0), (2, 0.9, 0.3), (3, 0.7, 0.1)], Best(2, 0.9, 0.3)),
        ([(1, 0.9, 0.3), (2, 0.9, 0.2)], Best(2, 0.9, 0.2)),
        ([(1, 0.9, 0.3), (2, 0.9, 0.3)], Best(1, 0.9, 0.3)),
        ([(1, 0.9, 0.3), (2, 0.9, 0.4)], Best(1, 0.9, 0.3)),
    ],
)
def test_the_best_is_the_most_accurate_then_the_surest_then_the_first(
    closed: list[tuple[int, float, float]], best: Best | None
) -> None:
    assert best_of(closed) == best


def rounds(*accuracies: float) -> list[tuple[int, float, float]]:
    return [(i, a, 1 - a) for i, a in enumerate(accuracies, 1)]


@pytest.mark.parametrize(
    ("settings", "accuracies", "failed", "why"),
    [
        ({}, [], 0, None),
        ({"rounds": 2}, [0.5], 0, None),
        ({"rounds": 2}, [0.5, 0.6], 0, "all 2 rounds are done"),
        ({"target_accuracy": 0.95}, [0.949], 0, None),
        ({"target_accuracy": 0.95}, [0.95], 0, "reached the target accuracy of 95.0%"),
        ({"target_accuracy": 0.95}, [0.96, 0.94], 0, None),
        ({"patience": 2}, [0.5, 0.5], 0, None),
        ({"patience": 2}, [0.5, 0.5, 0.5], 0, "no improvement for 2 rounds"),
        ({"patience": 2}, [0.6, 0.5, 0.5], 0, "no improvement for 2 rounds"),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.6], 0, None),
        ({"patience": 2, "min_delta": 0.05}, [0.5, 0.52, 0.54], 0, "no improvement for 2 rounds"),
        ({"patience": 2, "min_delta": 0.05}, [0.5, 0.52, 0.56], 0, None),
        ({"max_failed_rounds": 3}, [], 2, None),
        ({"max_failed_rounds": 3}, [], 3, "3 rounds in a row failed"),
        ({"max_failed_rounds": 3, "rounds": 5}, [0.9], 3, "3 rounds in a row failed"),
    ],
)
def test_when_a_run_is_over(
    settings: dict[str, Any], accuracies: list[float], failed: int, why: str | None
) -> None:
    assert stop(RunSettings.model_validate(settings), rounds(*accuracies), failed) == why
