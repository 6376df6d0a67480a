"""Wrong names in settings are refused with the names that there are."""

from __future__ import annotations

from typing import Any

import pytest

from apiary.errors import SettingsError
from apiary.settings import RunSettings, Settings
from apiary_coordinator.run.checks import check_run, check_settings


def test_the_defaults_hold() -> None:
    check_settings(Settings())


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ({"recipe": "edge_cmn"}, "run.recipe: recipes: no 'edge_cmn'; did you mean 'edge_cnn'?"),
        ({"strategy": "fedporx"}, "run.strategy: strategies: no 'fedporx'; did you mean 'fedprox'?"),
        ({"plan": {"codec": "f17"}}, "run.plan.codec: codecs: no 'f17'; did you mean 'f16'?"),
        ({"recipe_options": {"siz": 3}}, "run.recipe_options: recipe edge_cnn: no option 'siz'"),
        ({"combiner": "medain"}, "run.combiner: combiners: no 'medain'; did you mean 'median'?"),
        ({"server_rule": "fedadm"}, "run.server_rule: server_rules: no 'fedadm'; did you mean 'fedadam'?"),
        ({"node_rule": "x"}, "run.node_rule: node_rules: no 'x'. There are: plain, proximal"),
        (
            {"strategy_options": {"mu": 3}},
            "run.strategy_options of plain, mean, fedavg: no option 'mu'. There are: none; "
            "it belongs to run.node_rule = 'proximal'",
        ),
        (
            {"strategy": "fedadam", "strategy_options": {"beta3": 3}},
            "run.strategy_options of plain, mean, fedadam: no option 'beta3'; did you mean 'beta",
        ),
        (
            {"strategy": "median"},
            "run.combiner: median needs 3 updates or more, and with run.min_nodes 2 and",
        ),
    ],
)
def test_a_wrong_name_is_refused_with_those_there_are(run: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check_run(RunSettings.model_validate(run))
    assert str(refused.value).startswith(why)


def test_publishers_too() -> None:
    settings = Settings.model_validate({"publish": {"after_run": ["directory", "edge_impuls"]}})
    with pytest.raises(SettingsError, match=r"publish.after_run: publishers: no 'edge_impuls'; did you mean"):
        check_settings(settings)


@pytest.mark.parametrize(
    ("run", "closes_with", "would_do"),
    [
        ({"min_nodes": 2}, "run.min_nodes 2 and run.quorum 0.5 a round may close with 1", {"min_nodes": 10}),
        ({"min_nodes": 9}, "run.min_nodes 9 and run.quorum 0.5 a round may close with 5", None),
        ({"min_nodes": 8}, "run.min_nodes 8 and run.quorum 0.5 a round may close with 4", {"min_nodes": 10}),
        ({"min_nodes": 4, "quorum": 1.0}, "run.quorum 1 a round may close with 4", {"min_nodes": 5}),
        (
            {"min_nodes": 50, "cohort_size": 4},
            "run.min_nodes 50 and run.cohort_size 4 and run.quorum 0.5 a round may close with 2",
            {"cohort_size": 10},
        ),
    ],
)
def test_a_combiner_that_needs_more_updates_than_a_round_may_have_is_refused_with_what_would_do(
    run: dict[str, Any], closes_with: str, would_do: dict[str, Any] | None
) -> None:
    run = {"strategy": "multi_krum", **run}
    if would_do is None:
        check_run(RunSettings.model_validate(run))
        return
    with pytest.raises(SettingsError) as refused:
        check_run(RunSettings.model_validate(run))
    assert str(refused.value).startswith("run.combiner: multi_krum needs 5 updates or more, and with ")
    assert closes_with in str(refused.value)
    assert next(str(value) for value in would_do.values()) in str(refused.value)
    check_run(RunSettings.model_validate(run | would_do))


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ({"train": ["clases"]}, r"run\.train: 'clases' names nothing .* block1_conv, .*, classes$"),
        ({"train": ["classes", "block9_*"]}, r"run\.train: 'block9_\*' names nothing"),
        ({"recipe": "mobilenet_v2", "train": ["block1_conv"]}, r"its layers are: hidden, classes$"),
        (
            {"recipe": "char_rnn", "recipe_options": {"cell": "rnn"}, "train": ["state/gru_cell"]},
            r"its layers are: state/simple_rnn_cell, classes$",
        ),
        (
            {"plan": {"weight_decay": 0.5, "learning_rate": 2.0}},
            r"weight_decay times run\.plan\.learning_rate is 1: a step would take off all of a kernel",
        ),
        ({"by_round": {"warmup_rounds": 10}}, r"run\.by_round\.warmup_rounds is 10, and run\.rounds 10"),
        ({"by_round": {"epochs": {11: 2}}}, r"changes in round 11, and the run has 10 rounds"),
        ({"by_round": {"epochs": {1: 2}}, "plan": {"steps": 4}}, r"no effect with run\.plan\.steps \(4\)"),
        ({"combiner": "multi_krum", "min_nodes": 5}, r"run\.min_nodes 10 would do, or 5 with run\.quorum 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run_with_what_would_do(run: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        check_run(RunSettings.model_validate(run))


@pytest.mark.parametrize("recipe", ["edge_cnn", "mobilenet_v2", "char_rnn"])
def test_parts_that_there_are_hold(recipe: str) -> None:
    check_run(RunSettings(recipe=recipe, train=["classes", "*/bias"]))
