"""Rounds by other stages than the mean: the same bits whatever happens, and what is shown of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.fleet.harness import Fleet, MakeFleet, update_of
from tests.fleet.raw_node import RawNode

from apiary.blobs import BlobStore
from apiary.tensors import Weights
from apiary.wire import Digest, blob
from apiary.wire.messages import Announcement, ModelManifest, RoundResult
from apiary.wire.topics import TopicKind, Topics

NODES = 5
LIAR = "pi-01"
SHARE = 0.7
"""Of FedACG's last step."""


def store(fleet: Fleet) -> BlobStore:
    return BlobStore(fleet.folder / "coordinator" / "blobs")


def weights(fleet: Fleet, digest: str) -> Weights:
    return blob.decode(store(fleet).read(Digest(digest)), who="test").weights


def kept(fleet: Fleet, topic: TopicKind) -> bytes:
    return fleet.broker.retained[Topics().build(topic)]


def models(fleet: Fleet) -> list[tuple[str, dict[str, str] | None]]:
    return [(r["model"], r["left_out"]) for r in fleet.results()]


def opened(fleet: Fleet, number: int) -> bool:
    return fleet.runner is not None and fleet.runner.round.number == number


def closed(fleet: Fleet, number: int) -> bool:
    return len(fleet.results()) == number


def killed_in(fleet: Fleet, phase: str, number: int) -> None:
    """End the coordinator in that phase of that round, and start another."""
    fleet.until(
        lambda: (
            fleet.runner is not None
            and (fleet.runner.round.number, fleet.runner.round.phase.value) == (number, phase)
        )
    )
    fleet.kill_coordinator()
    fleet.start_coordinator()


@pytest.mark.parametrize("combiner", ["trimmed_mean", "median", "geometric_median", "multi_krum"])
def test_another_order_and_a_kill_while_aggregating_change_no_bit(
    make_fleet: MakeFleet, combiner: str
) -> None:
    run = {"combiner": combiner, "server_rule": "fedavgm", "rounds": 2, "quorum": 1.0}
    undisturbed = make_fleet(NODES, **run)
    undisturbed.run()
    fleet = make_fleet(NODES, **run)
    for i, node in enumerate(sorted(fleet.nodes)):
        fleet.trainings[node].seconds = 5.0 - i
    killed_in(fleet, "aggregating", 2)
    fleet.run()
    assert models(fleet) == models(undisturbed)
    assert all((out is not None) == (combiner == "multi_krum") for _, out in models(fleet))


def test_whom_the_combiner_drops_is_journaled_and_shown(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(NODES, strategy="multi_krum", rounds=1, quorum=1.0)
    raw = RawNode(fleet, LIAR)
    fleet.until(lambda: fleet.runner)
    assert fleet.runner is not None
    before = fleet.runner.server.weights
    raw.offer(raw.update(factor=-20.0, samples=2**20), accuracy=0.0)
    fleet.run(each=lambda _: raw.answer())
    assert [r["state"] for r in raw.receipts] == ["accepted"], "judged long after its receipt"
    (result,) = fleet.results()
    assert list(result["left_out"]) == [LIAR]
    why = result["left_out"][LIAR]
    assert why.endswith("(run.combiner multi_krum drops 1 of 5)")
    assert LIAR not in result["contributors"] and result["n_contributors"] == NODES - 1
    assert result["node_accuracy"] == 0.9
    assert f"round=1 node={LIAR} is left out: {why}" in caplog.messages
    last = RoundResult.decode(kept(fleet, TopicKind.ROUND_LAST), who="test")
    assert last.left_out == result["left_out"]
    others = [update_of(node, 1, before)[0] - before for node in sorted(fleet.nodes) if node != LIAR]
    mean = np.mean([u["a/bias"].astype(np.float64) for u in others], axis=0)
    assert weights(fleet, result["model"])["a/bias"] == pytest.approx(before["a/bias"] + mean, abs=1e-6)
    assert result["median_norm"] == pytest.approx(others[0].norm(), rel=0.1)


def acg(make_fleet: MakeFleet, **more: Any) -> Fleet:
    options = {"server_momentum": SHARE}
    return make_fleet(NODES, strategy="fedacg", strategy_options=options, rounds=3, **more)


def test_what_is_judged_and_what_is_sent(make_fleet: MakeFleet) -> None:
    fleet = acg(make_fleet)
    fleet.until(lambda: fleet.runner)
    assert fleet.runner is not None
    w = fleet.runner.server.weights
    m: dict[str, Any] = {name: np.zeros_like(t, np.float64) for name, t in w.items()}
    for number in (1, 2, 3):
        fleet.until(partial(opened, fleet, number))
        announced = Announcement.decode(kept(fleet, TopicKind.ROUND_CURRENT), who="test")
        assert announced.round == number
        x = weights(fleet, announced.model.digest)
        assert all(x[n] == pytest.approx(w[n] + SHARE * m[n], abs=1e-5) for n in w)
        fleet.until(partial(closed, fleet, number))
        result = fleet.results()[-1]
        updates = [update_of(node, number, x) for node in sorted(fleet.nodes)]
        total = sum(samples for _, samples in updates)
        for name in w:
            mean = sum(n * (after - x)[name].astype(np.float64) for after, n in updates) / total
            m[name] = SHARE * m[name] + mean
        w = Weights({name: t + m[name] for name, t in w.items()})
        judged = weights(fleet, result["model"])
        assert all(judged[n] == pytest.approx(w[n], abs=1e-5) for n in w)
        assert result["model"] != announced.model.digest
        served = ModelManifest.decode(kept(fleet, TopicKind.MODEL_CURRENT), who="test")
        judged_so_far = {r["model"] for r in fleet.results()}
        assert served.model.digest in judged_so_far, "nodes predict with what was judged"
    fleet.run()
    finished = Announcement.decode(kept(fleet, TopicKind.ROUND_CURRENT), who="test")
    assert finished.model.digest in {r["model"] for r in fleet.results()}


@pytest.mark.parametrize("phase", ["collecting", "aggregating", "evaluating"])
def test_after_a_kill_what_was_sent_is_made_again_to_the_bit(make_fleet: MakeFleet, phase: str) -> None:
    undisturbed = acg(make_fleet)
    undisturbed.run()
    fleet = acg(make_fleet)
    killed_in(fleet, phase, 2)
    sent = fleet.results()[0]["sends_next"]
    store(fleet).remove(Digest(sent))
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.until(lambda: fleet.runner)
    assert fleet.runner is not None and fleet.runner.server.train_on.digest == sent
    assert Digest(sent) in store(fleet)
    fleet.run()
    assert models(fleet) == models(undisturbed)


def test_states_and_sent_models_of_earlier_rounds_are_removed(make_fleet: MakeFleet) -> None:
    fleet = acg(make_fleet)
    fleet.run()
    results = fleet.results()
    there = {path.name for path in (fleet.folder / "coordinator" / "blobs").iterdir()}
    for key in ("strategy_state", "sends_next"):
        made = [r[key] for r in results]
        assert None not in made and len(set(made)) == len(results)
        assert there & set(made) == {made[-1]}
