"""Learning rate and epochs by round."""

from __future__ import annotations

import math
from typing import Any

import pytest

from apiary.errors import SettingsError
from apiary.settings import RunSettings
from apiary_coordinator.run.checks import check_run
from apiary_coordinator.run.plan_schedule import plan_of


def run(rounds: int = 10, rate: float = 0.1, **by_round: Any) -> RunSettings:
    return RunSettings.model_validate(
        {"rounds": rounds, "plan": {"learning_rate": rate, "epochs": 3}, "by_round": by_round, "seed": 7}
    )


def rates(settings: RunSettings, rounds: int | None = None) -> list[float]:
    return [plan_of(settings, closed).learning_rate for closed in range(rounds or settings.rounds)]


def test_without_a_schedule_every_round_has_the_plan_of_the_settings() -> None:
    settings = run()
    for closed in (0, 5, 99):
        assert plan_of(settings, closed) == settings.plan.model_copy(update={"seed": 7})


def test_linear_ends_at_the_last_share_and_stays_there() -> None:
    assert rates(run(5, learning_rate="linear", last_share=0.2), 7) == pytest.approx(
        [0.1, 0.08, 0.06, 0.04, 0.02, 0.02, 0.02]
    )


def test_cosine_begins_and_ends_flat() -> None:
    found = rates(run(9, learning_rate="cosine", last_share=0.1))
    assert found == pytest.approx(
        [0.1 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2) for i in range(9)], rel=1e-5
    )
    assert found[0] == 0.1 and found[-1] == pytest.approx(0.01)
    assert found[0] - found[1] < found[3] - found[4]


def test_a_step_multiplies_after_so_many_rounds() -> None:
    found = rates(run(7, learning_rate="step", step_rounds=3, step_factor=0.1))
    assert found == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001])


def test_a_rate_that_was_halved_for_ever_is_still_one() -> None:
    settings = run(100_000, learning_rate="step", step_rounds=1, step_factor=0.01)
    assert plan_of(settings, 99_999).learning_rate == 1e-12


@pytest.mark.parametrize("kind", ["constant", "step", "linear", "cosine"])
def test_warm_up_rises_to_the_full_rate_and_the_rest_begins_there(kind: str) -> None:
    found = rates(run(8, learning_rate=kind, warmup_rounds=3))
    assert found[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert found == sorted(found[:4]) + sorted(found[4:], reverse=True)


def test_one_round_alone_has_the_full_rate() -> None:
    for kind in ("linear", "cosine", "step"):
        assert rates(run(1, learning_rate=kind)) == [0.1]


def test_epochs_change_in_the_rounds_named() -> None:
    settings = run(8, epochs={"2": 5, "6": 1})
    assert [plan_of(settings, closed).epochs for closed in range(8)] == [3, 5, 5, 5, 5, 1, 1, 1]


@pytest.mark.parametrize(
    ("by_round", "why"),
    [
        ({"warmup_rounds": 10}, "run.by_round.warmup_rounds is 10, and run.rounds 10: expected fewer"),
        ({"epochs": {3: 2, 12: 1}}, r"changes in round 12, and the run has 10 rounds \(run.rounds\)"),
    ],
)
def test_a_schedule_that_the_run_is_too_short_for_is_refused(by_round: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        check_run(run(10, **by_round))
    check_run(run(20, **by_round))


@pytest.mark.parametrize(
    "by_round",
    [
        {"learning_rate": "exponential"},
        {"last_share": 0},
        {"step_factor": 2},
        {"epochs": {0: 1}},
        {"epochs": {1: 0}},
    ],
)
def test_impossible_values_are_refused_by_the_settings(by_round: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="by_round"):
        run(10, **by_round)


def test_epochs_by_round_and_steps_exclude_each_other() -> None:
    settings = run(10, epochs={2: 3})
    stepped = settings.model_copy(update={"plan": settings.plan.model_copy(update={"steps": 16})})
    with pytest.raises(SettingsError, match=r"no effect with run\.plan\.steps \(16\)"):
        check_run(stepped)
