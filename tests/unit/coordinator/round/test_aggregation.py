"""From a round's updates to the next model: the chain, who is left out of it, and what is written."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stand_ins.updates import spooled
from tests.unit.coordinator.round.collecting import EXPORTED, MANIFEST, REF, Judge

from apiary.blobs import BlobStore
from apiary.settings import RunSettings
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary_coordinator import strategies
from apiary_coordinator.round.aggregation import Aggregation, EvaluatedModel, rule_state, sent_model
from apiary_coordinator.round.server_state import ServerState

START = Weights({"a": np.full(6, 0.5, np.float32)})
LIAR = "e"


def update_of(node: str) -> Weights:
    """As long as its letter's place says; the liar's is twenty times as long."""
    length = (ord(node) - ord("a") + 1) * (20.0 if node == LIAR else 1.0)
    return Weights({"a": np.linspace(0.01, 0.02, 6, dtype=np.float32) * np.float32(length)})


def mean_of(nodes: str) -> np.ndarray[Any, Any]:
    return np.asarray(START["a"] + np.mean([update_of(n)["a"].astype(np.float64) for n in nodes], axis=0))


def far_from_start(weights: Weights) -> float:
    """Nothing is lost at the start: honest updates hardly move the model."""
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
        samples: dict[str, int] | None = None,
        **run: Any,
    ):
        folder.mkdir(exist_ok=True)
        self.run = RunSettings.model_validate(run)
        self._open = ExitStack()
        updates = {NodeId(n): update_of(n) for n in nodes}
        weights = {NodeId(n): (samples or {}).get(n, 10) for n in nodes}
        summed = strategies.load(self.run).streams
        self.counted = self._open.enter_context(spooled(folder / "spool", updates, weights, summed=summed))
        self.judge = Judge(far_from_start)
        self.blobs = BlobStore(folder / "blobs")
        self.aggregation = Aggregation(
            self.run,
            ServerState(EXPORTED, MANIFEST, START, REF, state),
            self.counted,
            builder=self.judge,
            blobs=self.blobs,
            loss_before=loss_before,
        )

    def made(self) -> EvaluatedModel:
        before = list(self.counted.nodes)
        made = self.aggregation.evaluate(self.aggregation.aggregate(len(before)))
        assert self.counted.nodes == before, "the updates are as they were"
        self._open.close()
        return made

    def written(self, made: EvaluatedModel) -> Weights:
        document = self.blobs.read(Digest(made.made.model.digest))
        assert made.made.model.bytes == len(document)
        return blob.decode(document, who="test").weights


def test_the_next_model_is_evaluated_and_on_the_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "abc")
    made = bench.made()
    assert made.made.weights["a"] == pytest.approx(mean_of("abc"), abs=1e-6)
    assert bench.written(made)["a"].tobytes() == made.made.weights["a"].tobytes()
    assert made.evaluation == bench.judge.evaluate(EXPORTED, made.made.weights)
    assert made.made.median_norm == pytest.approx(update_of("b").norm())
    assert (made.left_out, made.made.strategy_state, made.made.sent) == ({}, None, None)


@pytest.mark.parametrize("expected", [2, 4])
def test_updates_that_were_not_accepted_are_a_bug_of_ours(tmp_path: Path, expected: int) -> None:
    bench = Bench(tmp_path, "abc")
    with pytest.raises(AssertionError, match=f"3 updates are counted, {expected} were accepted"):
        bench.aggregation.aggregate(expected)


@pytest.mark.parametrize(("gain", "left_out"), [(0.25, [LIAR]), (0.75, [LIAR]), (0, [])])
def test_an_update_that_makes_it_worse_is_not_in_it(tmp_path: Path, gain: float, left_out: list[str]) -> None:
    bench = Bench(tmp_path, "abcd" + LIAR, loss_before=0.2, leave_out_gain=gain)
    made = bench.made()
    counted = "".join(n for n in "abcd" + LIAR if n not in left_out)
    assert list(made.left_out) == left_out
    assert made.made.weights["a"] == pytest.approx(mean_of(counted), abs=1e-6)
    assert bench.written(made)["a"].tobytes() == made.made.weights["a"].tobytes()
    assert made.evaluation.loss == pytest.approx(far_from_start(made.made.weights))
    # The lower median: of four honest ones, or of them and the liar's.
    assert made.made.median_norm == pytest.approx(update_of("b" if left_out else "c").norm())


@pytest.mark.parametrize("loss_before", [None, 1000.0])
def test_nothing_is_left_out_where_the_loss_is_not_known_to_rise(
    tmp_path: Path, loss_before: float | None
) -> None:
    bench = Bench(tmp_path, "abcd" + LIAR, loss_before=loss_before)
    assert bench.made().left_out == {}
    assert len(bench.judge.seen) == 1


def test_who_pulls_most_by_samples_and_norm_is_tried_first(tmp_path: Path) -> None:
    """Of ten only eight are tried: the two with the smallest product are not."""
    nodes = "abcdefghij"
    samples = {"a": 1000, "j": 1}  # a short update that weighs much, a long one that hardly weighs
    bench = Bench(tmp_path, nodes, loss_before=0.0, samples=samples)
    bench.made()
    pulls = {n: update_of(n).norm() * samples.get(n, 10) for n in nodes}
    tried = sorted(nodes, key=lambda n: -pulls[n])[:8]
    assert tried[0] == LIAR and tried[1] == "a" and "j" not in tried

    def without(one: str) -> float:
        left = [n for n in nodes if n != one]
        weights = [samples.get(n, 10) for n in left]
        return float(START["a"][-1] + np.average([update_of(n)["a"][-1] for n in left], weights=weights))

    assert bench.judge.seen[1:9] == [pytest.approx(without(n), abs=1e-5) for n in tried]


def test_who_a_combiner_drops_is_left_out_and_not_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "abcd" + LIAR, loss_before=0.0, strategy="multi_krum")
    made = bench.made()
    assert LIAR in made.left_out and "krum" in made.left_out[NodeId(LIAR)]
    gone = [n for n in "abcd" + LIAR if n not in made.left_out]
    assert made.made.median_norm == pytest.approx(
        sorted(update_of(n).norm() for n in gone)[(len(gone) - 1) // 2]
    )
    assert bench.written(made)["a"].tobytes() == made.made.weights["a"].tobytes()


def test_a_server_rules_state_goes_on_from_what_the_round_before_left(tmp_path: Path) -> None:
    first = Bench(tmp_path / "1", "abc", strategy="fedavgm")
    made = first.made()
    state = made.made.strategy_state
    assert state is not None
    kept = rule_state(first.blobs, state)
    assert len(kept) > 0
    second = Bench(tmp_path / "2", "abc", strategy="fedavgm", state=state)
    second.blobs.put(first.blobs.read(state))
    again = second.made()
    moved, moved_again = (far_from_start(one.made.weights) for one in (made, again))
    assert moved_again == pytest.approx(1.5 * moved, rel=1e-3), "half of the last step, and the mean"
    assert len(rule_state(first.blobs, None)) == 0


def test_what_is_sent_is_kept_where_it_is_another_model(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "abc", strategy="fedacg")
    made = bench.made()
    sent, state = made.made.sent, made.made.strategy_state
    assert sent is not None and sent.model != made.made.model
    document = bench.blobs.read(Digest(sent.model.digest))
    assert blob.decode(document, who="test").weights["a"].tobytes() == sent.weights["a"].tobytes()
    assert far_from_start(sent.weights) > far_from_start(made.made.weights)
    assert state is not None
    chain = strategies.load(bench.run)
    weights, model = made.made.weights, made.made.model
    assert sent_model(chain, bench.blobs, rule_state(bench.blobs, state), weights, model) is not None
    # Without momentum the two models are the same number for number.
    still = Weights({name: np.zeros_like(t) for name, t in rule_state(bench.blobs, state).items()})
    assert sent_model(chain, bench.blobs, still, weights, model) is None
