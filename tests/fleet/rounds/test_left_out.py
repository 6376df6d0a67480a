"""An accepted update that makes the model much worse is not in it: named, logged, and to the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.fleet.harness import Fleet, MakeFleet, update_of
from tests.fleet.raw_node import RawNode

from apiary.blobs import BlobStore
from apiary.tensors import Weights
from apiary.wire import Digest, blob
from apiary.wire.messages import RoundResult
from apiary.wire.topics import TopicKind, Topics

LIAR = "pi-01"
NODES = 5


def loss(weights: Weights) -> float:
    """The start model has .245; the mean of honest updates hardly moves it."""
    return weights.norm() / 1000


def lying_fleet(make_fleet: MakeFleet, **run: Any) -> tuple[Fleet, Callable[[Any], None]]:
    """One node's update is as long as the first round bears and points elsewhere."""
    fleet = make_fleet(NODES, loss=loss, rounds=2, **run)
    raw = RawNode(fleet, LIAR)
    offered = 0

    def lie(_: Any) -> None:
        nonlocal offered
        if fleet.runner is not None and fleet.runner.round.number > offered:
            offered = fleet.runner.round.number
            raw.offer(raw.update(factor=-29.0 if offered == 1 else 1.0, samples=2**20), accuracy=0.0)
        raw.answer()

    return fleet, lie


def model_of(fleet: Fleet, number: int) -> Weights:
    store = BlobStore(fleet.folder / "coordinator" / "blobs")
    return blob.decode(store.read(Digest(fleet.results()[number - 1]["model"])), who="test").weights


def test_the_model_is_the_mean_of_the_others(make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet, lie = lying_fleet(make_fleet)
    fleet.until(lambda: fleet.runner)
    assert fleet.runner is not None
    before = fleet.runner.server.weights
    fleet.run(each=lie)
    first, second = fleet.results()
    assert list(first["left_out"]) == [LIAR]
    assert re.match(
        r"the held-out loss is 0\.[34]\d+ with its update and 0\.24\d* without it, 0\.24\d* before",
        first["left_out"][LIAR],
    )
    assert first["node_accuracy"] == 0.9, "a claim of who is left out does not count"
    assert LIAR not in first["contributors"] and first["n_contributors"] == NODES - 1
    assert first["n_samples"] == sum(c["samples"] for c in first["contributors"].values())
    assert first["loss"] == pytest.approx(loss(model_of(fleet, 1)))
    name, total = "a/bias", first["n_samples"]
    updates = [update_of(n, 1, before) for n in sorted(fleet.nodes) if n != LIAR]
    mean = sum(samples * (after - before)[name].astype(np.float64) for after, samples in updates) / total
    assert model_of(fleet, 1)[name] == pytest.approx(before[name] + mean, abs=1e-6)
    assert 24 < first["median_norm"] < 25, "the bound of the next round follows from what was counted"
    assert second["left_out"] is None and LIAR in second["contributors"]
    assert [m for m in caplog.messages if f"node={LIAR} is left out" in m] == [
        f"round=1 node={LIAR} is left out: {first['left_out'][LIAR]}"
    ]
    last = RoundResult.decode(fleet.broker.retained[Topics().build(TopicKind.ROUND_LAST)], who="test")
    assert last.left_out is None


def test_its_node_is_answered_as_every_other(make_fleet: MakeFleet) -> None:
    """An update is judged with those of the others, long after its receipt."""
    fleet = make_fleet(NODES, loss=loss, rounds=1)
    raw = RawNode(fleet, LIAR)
    fleet.until(lambda: fleet.runner)
    raw.offer(raw.update(factor=-29.0, samples=2**20))
    fleet.run(each=lambda _: raw.answer())
    assert list(fleet.results()[0]["left_out"]) == [LIAR]
    assert [r["state"] for r in raw.receipts] == ["accepted"]


def test_with_no_gain_every_update_counts(make_fleet: MakeFleet) -> None:
    fleet, lie = lying_fleet(make_fleet, leave_out_gain=0)
    fleet.run(each=lie)
    assert LIAR in fleet.results()[0]["contributors"] and fleet.results()[0]["left_out"] is None
    assert fleet.results()[0]["loss"] > 0.3


@pytest.mark.parametrize("phase", ["aggregating", "evaluating"])
def test_a_kill_changes_no_bit_of_it(make_fleet: MakeFleet, phase: str) -> None:
    undisturbed, lie = lying_fleet(make_fleet)
    undisturbed.run(each=lie)
    fleet, lie = lying_fleet(make_fleet)

    def reached() -> bool:
        lie(None)
        return fleet.runner is not None and fleet.runner.round.phase.value == phase

    fleet.until(reached)
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.run(each=lie)
    for number, (expected, found) in enumerate(
        zip(undisturbed.results(), fleet.results(), strict=True), start=1
    ):
        same = ("left_out", "loss", "model", "n_samples", "contributors")
        for key in same[:4]:
            assert found[key] == expected[key], (number, key)
        assert list(found["contributors"]) == list(expected["contributors"])
