"""From a round's updates to the next model: the mean, who is left out of it, and what is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.coordinator.round.collecting import (
    EXPORTED,
    MANIFEST,
    REF,
    START,
    Collecting,
    Judge,
    update_of,
)

from apiary import plugins
from apiary.blobs import BlobStore
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary_coordinator import strategies
from apiary_coordinator.round.aggregation import Aggregation, EvaluatedModel
from apiary_coordinator.round.server_state import ServerState

LARGE, LIAR = 20.0, "e"
"""What the liar's update is multiplied with."""


def far_from_start(weights: Weights) -> float:
    """Honest updates hardly move the model; nothing is lost at the start."""
    return (weights - START).norm()


class Bench:
    """A round that has its updates, and the aggregation over it."""

    def __init__(
        self,
        folder: Path,
        nodes: str,
        *,
        loss_before: float | None = None,
        state: Digest | None = None,
        **run: Any,
    ):
        self.one = Collecting(folder, nodes)
        for node in nodes:
            self.one.counted(node, LARGE if node == LIAR else 1.0)
        self.judge = Judge(far_from_start)
        self.blobs = BlobStore(folder / "blobs")
        self.server = ServerState(EXPORTED, MANIFEST, START, REF, state)
        self.aggregation = Aggregation(
            RunSettings.model_validate(run),
            self.server,
            self.one.collector,
            builder=self.judge,
            blobs=self.blobs,
            loss_before=loss_before,
        )

    def made(self) -> EvaluatedModel:
        bits = self.one.mean()
        count = self.one.collector.sum.updates
        made = self.aggregation.evaluate(self.aggregation.aggregate(count))
        assert self.one.mean() == bits and self.one.collector.sum.updates == count, "the sum is as it was"
        self.one.close()
        return made

    def written(self, made: EvaluatedModel) -> Weights:
        document = self.blobs.read(Digest(made.made.model.digest))
        assert made.made.model.bytes == len(document)
        return blob.decode(document, who="test").weights


def bits(weights: Weights) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in weights.items()}


def mean_of(nodes: str) -> np.ndarray[Any, Any]:
    updates = [update_of(n, LARGE if n == LIAR else 1.0)["a"].astype(np.float64) for n in nodes]
    return np.asarray(START["a"] + np.mean(updates, axis=0))


def test_the_next_model_is_evaluated_and_on_the_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "abc")
    made = bench.made()
    assert made.made.weights["a"] == pytest.approx(mean_of("abc"), abs=1e-6)
    assert bits(bench.written(made)) == bits(made.made.weights)
    assert made.evaluation == bench.judge.evaluate(EXPORTED, made.made.weights)
    assert made.made.median_norm == pytest.approx(update_of("b").norm())
    assert (made.left_out, made.made.strategy_state) == ((), None)


def test_a_sum_that_does_not_hold_what_was_accepted_is_a_bug_of_ours(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "abc")
    for expected in (2, 4):
        with pytest.raises(AssertionError, match=f"the sum holds 3 updates, {expected} were accepted"):
            bench.aggregation.aggregate(expected)
    bench.one.close()


@pytest.mark.parametrize(("gain", "left_out"), [(0.25, [LIAR]), (0.75, [LIAR]), (0, [])])
def test_an_update_that_makes_it_worse_is_not_in_it(tmp_path: Path, gain: float, left_out: list[str]) -> None:
    bench = Bench(tmp_path, "abcd" + LIAR, loss_before=15.0, leave_out_gain=gain)
    made = bench.made()
    counted = "".join(n for n in "abcd" + LIAR if n not in left_out)
    assert [one.node for one in made.left_out] == left_out
    assert made.made.weights["a"] == pytest.approx(mean_of(counted), abs=1e-6)
    assert bits(bench.written(made)) == bits(made.made.weights)
    assert made.evaluation.loss == pytest.approx(far_from_start(made.made.weights))
    # The lower median: of four honest ones, or of them and the liar's.
    assert made.made.median_norm == pytest.approx(update_of("b" if left_out else "c").norm())


@pytest.mark.parametrize("loss_before", [None, 1000.0])
def test_nothing_is_left_out_where_the_loss_is_not_known_to_rise(
    tmp_path: Path, loss_before: float | None
) -> None:
    bench = Bench(tmp_path, "abcd" + LIAR, loss_before=loss_before)
    assert bench.made().left_out == ()
    assert len(bench.judge.seen) == 1


def test_who_pulls_most_by_samples_and_norm_is_tried_first(tmp_path: Path) -> None:
    """Of ten only eight are tried; each is left out of all the others."""
    nodes = "abcdefghij"
    bench = Bench(tmp_path, nodes, loss_before=0.0)
    made = bench.made()
    first = bench.judge.seen[1:9]
    pulls = {n: update_of(n, LARGE if n == LIAR else 1.0).norm() for n in nodes}
    tried = sorted(nodes, key=lambda n: -pulls[n])[:8]
    assert first == [pytest.approx(mean_of(nodes.replace(n, ""))[-1], abs=1e-5) for n in tried]
    assert made.left_out[0].node == NodeId(LIAR)


STATEFUL = """
from apiary.tensors import Weights

def plan(plan, options):
    return plan

def init(weights):
    return Weights({"rounds": weights["a"][:1]})

def apply(state, weights, mean):
    return Weights({"rounds": state["rounds"] + 1}), weights
"""


@pytest.fixture
def stateful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A strategy that counts rounds from .5; a file beside the others, as a plug-in is."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "counting_rounds.py").write_text(STATEFUL)
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path / "plugins")])
    plugins.names.cache_clear()
    yield "counting_rounds"
    plugins.names.cache_clear()
    sys.modules.pop(f"{strategies.__name__}.counting_rounds", None)


def test_a_strategys_state_goes_on_from_what_the_round_before_left(tmp_path: Path, stateful: str) -> None:
    first = Bench(tmp_path / "1", "abc", strategy=stateful)
    state = first.made().made.strategy_state
    assert state is not None
    kept = first.blobs.read(state)
    assert blob.decode(kept, who="test").weights["rounds"].tolist() == [1.5]
    second = Bench(tmp_path / "2", "abc", strategy=stateful, state=state)
    second.blobs.put(kept)
    after = second.made().made.strategy_state
    assert after is not None
    assert blob.decode(second.blobs.read(after), who="test").weights["rounds"].tolist() == [2.5]
