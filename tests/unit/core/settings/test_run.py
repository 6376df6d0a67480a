"""What the journal has of a run's settings: all that it uses, and nothing that version 0.1 would refuse."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from apiary.settings import RunSettings

VERSION_0: Final = {
    "": "recipe recipe_options strategy strategy_options rounds target_accuracy patience min_delta min_nodes "
    "fraction cohort_size only per_tag over_select quorum deadline_s first_deadline_s lost_grace_s settle_s "
    "max_failed_rounds seed plan bounds",
    "plan": "epochs batch_size optimizer momentum learning_rate proximal_mu class_weights flip shift "
    "validation_share min_samples partial codec seed",
    "bounds": "max_abs max_norm max_samples max_bytes",
}
"""The settings of `[run]` that version 0.1 knows. They stay as they are."""


def test_a_run_that_uses_nothing_new_may_be_taken_up_by_the_version_before() -> None:
    run = RunSettings.model_validate(
        {"rounds": 7, "plan": {"epochs": 3, "label_smoothing": 0.0}, "clip": 3.0}
    )
    found = json.loads(run.journaled())
    assert set(found) == set(VERSION_0[""].split())
    for part in ("plan", "bounds"):
        assert set(found[part]) == set(VERSION_0[part].split())
    assert (found["rounds"], found["plan"]["epochs"]) == (7, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip": 2.0, "max_weight_ratio": 4.0, "leave_out_gain": 0.0, "start_from": "scratch"},
        {"node_rule": "proximal", "combiner": "median", "server_rule": "fedavgm", "min_nodes": 3},
        {"by_round": {"learning_rate": "cosine", "epochs": {1: 4, 3: 2}}},
        {"plan": {"steps": 16, "weight_decay": 0.01, "gradient_clip": 1.0, "mix": 0.2, "rotate": 5}},
    ],
)
def test_what_is_journaled_is_the_run(settings: dict[str, Any]) -> None:
    run = RunSettings.model_validate(settings)
    assert RunSettings.model_validate_json(run.journaled()) == run
