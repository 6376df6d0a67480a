"""From a run's settings to its chain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apiary.errors import SettingsError
from apiary.plugins import names
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary.wire.messages import Plan
from apiary_coordinator import strategies
from apiary_coordinator.combiners import trimmed_mean
from apiary_coordinator.server_rules import fedacg, fedadagrad


def load(**run: Any) -> strategies.Chain:
    return strategies.load(RunSettings.model_validate(run))


def test_a_strategy_names_a_stage_of_each_kind() -> None:
    assert load().names == {"node_rule": "plain", "combiner": "mean", "server_rule": "fedavg"}
    assert load(strategy="fedprox").names["node_rule"] == "proximal"
    assert load(strategy="fedacg").names["server_rule"] == "fedacg"
    assert load(strategy="median").names["combiner"] == "median"


def test_a_setting_replaces_a_stage_of_it() -> None:
    chain = load(strategy="fedacg", node_rule="proximal", combiner="trimmed_mean", server_rule="fedyogi")
    assert chain.names == {"node_rule": "proximal", "combiner": "trimmed_mean", "server_rule": "fedyogi"}


def test_an_option_goes_to_the_stage_that_has_it() -> None:
    given = {"mu": 0.5, "trim": 0.3, "server_momentum": 0.85}
    chain = load(strategy="fedacg", node_rule="proximal", combiner="trimmed_mean", strategy_options=given)
    assert chain.plan(Plan()).proximal_mu == 0.5
    assert chain.options["combiner"] == trimmed_mean.Options(trim=0.3)
    assert chain.options["server_rule"] == fedacg.Options(server_momentum=0.85)


def test_an_option_of_a_stage_that_was_replaced_is_refused() -> None:
    load(strategy="fedacg", strategy_options={"server_momentum": 0.9})
    with pytest.raises(SettingsError, match=r"of plain, mean, fedavg: no option 'server_momentum'.*'fedacg'"):
        load(strategy="fedacg", server_rule="fedavg", strategy_options={"server_momentum": 0.9})


def test_a_settings_file_of_the_version_before_means_what_it_meant() -> None:
    """A run that is open in the journal goes on: its settings have none of the new names."""
    journaled = '{"strategy": "fedprox", "strategy_options": {"mu": 0.1}, "rounds": 4}'
    chain = strategies.load(RunSettings.model_validate_json(journaled))
    assert chain.names == {"node_rule": "proximal", "combiner": "mean", "server_rule": "fedavg"}
    assert chain.plan(Plan()) == Plan(proximal_mu=0.1)
    assert chain.streams and chain.least_updates == 1


@pytest.mark.parametrize("mu", [0, -1, 1000.1, True, "much", float("nan"), float("inf"), [1]])
def test_a_wrong_value_is_refused_with_what_is_right(mu: Any) -> None:
    with pytest.raises(
        SettingsError, match=r"strategy_options\.mu is .*, expected a number over 0, at most 1_000"
    ):
        strategies.load(RunSettings.model_construct(strategy="fedprox", strategy_options={"mu": mu}))


def test_a_whole_number_is_asked_for_where_it_is_one() -> None:
    with pytest.raises(SettingsError, match=r"steps is 2\.5, expected a whole number 1 to 100"):
        load(strategy="geometric_median", strategy_options={"steps": 2.5})


def test_a_whole_number_will_do_for_a_number() -> None:
    assert load(strategy="fedprox", strategy_options={"mu": 1000}).plan(Plan()).proximal_mu == 1000.0
    assert (
        load(strategy="fedadagrad", strategy_options={"beta1": 0}).options["server_rule"]
        == fedadagrad.Options()
    )


@pytest.mark.parametrize("rule", names("apiary_coordinator.server_rules"))
def test_running_moments_have_the_mean_whatever_the_rule_does_to_weights(rule: str) -> None:
    """A running variance that falls would go on falling by momentum, below zero."""
    chain = load(server_rule=rule)
    names_of = ("kernel", "norm/moving_variance")
    weights = Weights({name: np.ones(3, np.float32) for name in names_of})
    state = Weights({})
    for share in (0.1, 0.01):
        update = {name: np.full(3, share) - weights[name] for name in names_of}
        state, weights = chain.apply(state, weights, update, averaged={"norm/moving_variance"})
        assert np.allclose(weights["norm/moving_variance"], share)
        assert np.array_equal(
            chain.sent(state, weights)["norm/moving_variance"], weights["norm/moving_variance"]
        )
        assert list(weights) == list(names_of)
    # The kernel follows the rule: FedAvg alone is where the mean is.
    assert np.allclose(weights["kernel"], 0.01) == (rule == "fedavg")
