"""The plan of a round: learning rate and local epochs by the run's schedule. Pure.

The learning rate is an input of the training step, so that each round has its own without another export.
Cosine and warm-up as in Loshchilov and Hutter 2017 (arXiv:1608.03983), by round: a node's optimizer begins
anew in each.
"""

import math

from apiary.errors import SettingsError
from apiary.settings import RunSettings
from apiary.wire.messages import Plan

_LEAST = 1e-12
"""A plan's learning rate is above 0, however often it was halved."""


def plan_of(run: RunSettings, closed: int) -> Plan:
    """The plan of the round after `closed` rounds; with the default schedule `run.plan` to the bit."""
    schedule = run.by_round
    share = _share(run, closed)
    rate = run.plan.learning_rate
    if share != 1:
        rate = max(_LEAST, float(f"{rate * share:.6g}"))
    begun = [first for first in schedule.epochs if first <= closed + 1]
    epochs = schedule.epochs[max(begun)] if begun else run.plan.epochs
    return run.plan.model_copy(update={"learning_rate": rate, "epochs": epochs, "seed": run.seed})


def check_schedule(run: RunSettings) -> None:
    """Refuse a schedule that the run is too short for, or that turns weights round. Raises SettingsError."""
    schedule = run.by_round
    if (share := run.plan.weight_decay * run.plan.learning_rate) >= 1:
        raise SettingsError(
            f"run.plan.weight_decay times run.plan.learning_rate is {share:g}: a step would take off all of "
            "a kernel, or more; expected less than 1"
        )
    if schedule.warmup_rounds >= run.rounds:
        raise SettingsError(
            f"run.by_round.warmup_rounds is {schedule.warmup_rounds}, and run.rounds {run.rounds}: "
            "expected fewer"
        )
    if schedule.epochs and run.plan.steps is not None:
        raise SettingsError(
            f"run.by_round.epochs has no effect with run.plan.steps ({run.plan.steps}): leave out one of them"
        )
    if late := [first for first in schedule.epochs if first > run.rounds]:
        raise SettingsError(
            f"run.by_round.epochs changes in round {min(late)}, and the run has {run.rounds} rounds "
            "(run.rounds)"
        )


def _share(run: RunSettings, closed: int) -> float:
    """Of `run.plan.learning_rate`."""
    schedule, warmup = run.by_round, run.by_round.warmup_rounds
    if closed < warmup:
        return (closed + 1) / (warmup + 1)
    after = closed - warmup
    whole = run.rounds - 1 - warmup
    done = min(1.0, after / whole) if whole > 0 else 0.0
    match schedule.learning_rate:
        case "step":
            return float(schedule.step_factor ** (after // schedule.step_rounds))
        case "linear":
            return 1 - (1 - schedule.last_share) * done
        case "cosine":
            return schedule.last_share + (1 - schedule.last_share) * (1 + math.cos(math.pi * done)) / 2
        case _:
            return 1.0
