"""What every strategy owes the coordinator: a chain of stages that there are, and that fit together."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stand_ins.updates import SHAPES, UpdatesInMemory, drawn, flat, spooled, weighed

from apiary import plugins
from apiary.errors import SettingsError
from apiary.options import StageOptions
from apiary.plugins import load, names
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary_coordinator import strategies
from apiary_coordinator.run.checks import check_run

PACKAGE = "apiary_coordinator.strategies"
NAMES = names(PACKAGE)
CODECS = names("apiary.wire.codecs")
COMBINERS, RULES = (names(strategies.KINDS[kind]) for kind in ("combiner", "server_rule"))
STAGES = [(kind, name) for kind, package in strategies.KINDS.items() for name in names(package)]


@pytest.fixture(params=NAMES)
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def table(kind: Any, name: str) -> type[StageOptions]:
    found: type[StageOptions] = load(strategies.KINDS[kind], name).Options
    return found


def test_there_are_those_that_the_manual_names() -> None:
    rules = {"fedavg", "fedprox", "fedavgm", "fedacg", "fedadam", "fedyogi", "fedadagrad"}
    assert rules | {"trimmed_mean", "median", "geometric_median", "multi_krum"} <= set(NAMES)


def test_its_defaults_are_a_run_that_may_begin(strategy: str) -> None:
    check_run(RunSettings(strategy=strategy, min_nodes=10))


def test_an_unknown_option_is_refused_by_name(strategy: str) -> None:
    with pytest.raises(
        SettingsError, match=r"run\.strategy_options of .*: no option 'no_such_option'.*There"
    ):
        strategies.load(RunSettings(strategy=strategy, strategy_options={"no_such_option": 1}))


def test_its_file_cites_where_it_comes_from(strategy: str) -> None:
    assert re.search(r"\d{4}, arXiv:\d{4}\.\d{5}\)", load(PACKAGE, strategy).__doc__ or "")


@pytest.mark.parametrize(("kind", "name"), STAGES)
def test_a_stage_cites_its_paper_and_explains_its_options(kind: Any, name: str) -> None:
    assert re.search(r"\d{4}, arXiv:\d{4}\.\d{5}", load(strategies.KINDS[kind], name).__doc__ or "")
    for option, info in table(kind, name).model_fields.items():
        assert info.description, option
        assert info.metadata, f"{option} has no bounds"
    assert table(kind, name)() == table(kind, name).model_validate({}), "every option has a default"


def test_no_two_kinds_have_an_option_of_the_same_name() -> None:
    """It would not be known whose an option is."""
    options = {
        kind: {o for k, name in STAGES if k == kind for o in table(kind, name).model_fields}
        for kind in strategies.KINDS
    }
    assert [a & b for a, b in itertools.combinations(options.values(), 2)] == [set()] * 3


def model(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return Weights({n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("combiner", COMBINERS)
def test_every_composition_gives_a_model_and_the_same_in_any_order(
    combiner: str, codec: str, tmp_path: Path
) -> None:
    """Three rounds by each server rule, twice: with updates in one order, and in another."""
    for rule in RULES:
        chain = strategies.load(RunSettings(combiner=combiner, server_rule=rule))
        assert chain.names == {"node_rule": "plain", "combiner": combiner, "server_rule": rule}
        found = [_rounds(chain, codec, tmp_path / "x.spool", order) for order in (1, 2)]
        assert found[0] == found[1], rule


def _rounds(chain: strategies.Chain, codec: str, path: Path, order: int) -> list[bytes]:
    state, weights, bits = Weights({}), model(0), []
    for number in range(3):
        updates = drawn(number, 6)
        shuffled = np.random.default_rng(order).permutation(sorted(updates)).tolist()
        kind: dict[str, Any] = {"codec": codec, "summed": chain.streams, "order": shuffled}
        with spooled(path, updates, weighed(updates), **kind) as counted:
            state, weights = chain.apply(state, weights, chain.combine(counted).update)
        sent = chain.sent(state, weights)
        assert weights.shapes == sent.shapes == SHAPES
        assert weights.is_finite() and sent.is_finite() and state.is_finite()
        bits += [flat(w).tobytes() if len(w) else b"" for w in (state, weights, sent)]
    return bits


def test_fedavg_and_fedprox_give_the_bits_of_the_exact_mean() -> None:
    """As in every version so far: the model plus the exact mean, in float64, rounded once."""
    updates = drawn(3, 5)
    samples = weighed(updates)
    exact = UpdatesInMemory(updates, samples).mean()
    expected = {n: (t + exact[n]).astype(np.float32).tobytes() for n, t in model(1).items()}
    for strategy in ("fedavg", "fedprox"):
        chain = strategies.load(RunSettings(strategy=strategy))
        state, after = chain.apply(
            Weights({}), model(1), chain.combine(UpdatesInMemory(updates, samples)).update
        )
        assert {n: t.tobytes() for n, t in after.items()} == expected and len(state) == 0
        assert chain.sent(state, after) is after


DROPPED_IN = {
    "combiner": (
        "sums",
        """
from pydantic import Field
from apiary.options import StageOptions
from apiary_coordinator.combiners.base import Combined, by_coordinate

class Options(StageOptions):
    at_most: float = Field(1.0, gt=0, le=9, description="bound of each coordinate")

def least(options):
    return 4

def combine(updates, options):
    return Combined(by_coordinate(updates, lambda b: b.sum(axis=0).clip(-options.at_most, options.at_most)))
""",
    ),
    "server_rule": (
        "half",
        """
from apiary.options import StageOptions
from apiary_coordinator.server_rules.base import moved

class Options(StageOptions):
    pass

def apply(state, weights, update, options):
    return state, moved(weights, update, 0.5)
""",
    ),
    "strategy": (
        "summed_half",
        """
from apiary_coordinator.strategies.base import Strategy

STRATEGY = Strategy(node_rule="proximal", combiner="sums", server_rule="half", options={"at_most": 2})
""",
    ),
}


def test_adding_one_is_adding_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {str(kind): package for kind, package in strategies.KINDS.items()} | {"strategy": PACKAGE}
    for kind, (name, text) in DROPPED_IN.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        package = __import__(packages[kind], fromlist=["_"])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    plugins.names.cache_clear()
    try:
        run = RunSettings(strategy="summed_half", min_nodes=8, strategy_options={"mu": 0.5})
        check_run(run)
        chain = strategies.load(run)
        assert chain.plan(run.plan).proximal_mu == 0.5
        updates = drawn(1, 8, scale=5.0)
        after = chain.apply(Weights({}), model(1), chain.combine(UpdatesInMemory(updates)).update)[1]
        assert np.abs(flat(after) - flat(model(1))).max() == pytest.approx(1.0)
        with pytest.raises(SettingsError, match=r"run\.combiner: sums needs 4 updates or more"):
            check_run(run.model_copy(update={"min_nodes": 3}))
        with pytest.raises(SettingsError, match=r"at_most is 10, expected a number over 0, at most 9"):
            check_run(run.model_copy(update={"strategy_options": {"at_most": 10}}))
    finally:
        plugins.names.cache_clear()
