"""When a run ends, and which of its models wins. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from apiary.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Best:
    """The best round so far: the highest accuracy, of equals the lowest loss, then the earliest."""

    round: int
    accuracy: float
    loss: float


def best_of(closed: Sequence[tuple[int, float, float]]) -> Best | None:
    """The best of (round, accuracy, loss), or None where no round was closed."""
    # Of equals max gives the first.
    return Best(*max(closed, key=lambda one: (one[1], -one[2]))) if closed else None


def stop(run: RunSettings, closed: Sequence[tuple[int, float, float]], failed_in_a_row: int) -> str | None:
    """Why the run is over, or None. `closed` are (round, accuracy, loss), oldest first."""
    if failed_in_a_row >= run.max_failed_rounds:
        return f"{failed_in_a_row} rounds in a row failed"
    if not closed:
        return None
    if run.target_accuracy is not None and closed[-1][1] >= run.target_accuracy:
        return f"reached the target accuracy of {run.target_accuracy:.1%}"
    if len(closed) >= run.rounds:
        return f"all {run.rounds} rounds are done"
    if run.patience is not None and _stale(closed, run.min_delta) >= run.patience:
        return f"no improvement for {run.patience} rounds"
    return None


def _stale(closed: Sequence[tuple[int, float, float]], min_delta: float) -> int:
    top, since = closed[0][1], 0
    for _, accuracy, _ in closed[1:]:
        if accuracy > top + min_delta:
            top, since = accuracy, 0
        else:
            since += 1
    return since
