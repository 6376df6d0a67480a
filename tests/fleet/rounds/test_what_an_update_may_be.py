"""How much an update weighs and how far it moves the model: fixed when the round opens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tests.fleet.harness import FakeTraining, Fleet, MakeFleet, samples_of, update_of
from tests.fleet.raw_node import RawNode
from tests.stand_ins.memory_bus import MemoryBroker

from apiary.blobs import BlobStore
from apiary.learn.clip import clipped
from apiary.tensors import Weights
from apiary.wire import Digest, NodeId, blob
from apiary.wire.messages import Announcement, Bounds
from apiary.wire.topics import TopicKind, Topics
from apiary_coordinator.journal import Journal
from apiary_coordinator.updates.limits import FIRST_SHARE

BAD = "pi-01"
NODES = 5
REPORTED = 29
"""Of 33 pictures, which every node of the harness reports, what is expected to train."""
CAP = 2 * REPORTED
"""Half of what the four others weigh."""


def opened(fleet: Fleet) -> RawNode:
    raw = RawNode(fleet, BAD)
    fleet.until(lambda: fleet.runner)
    return raw


def bounds(fleet: Fleet) -> Bounds:
    """As they are announced."""
    payload = fleet.broker.retained[Topics().build(TopicKind.ROUND_CURRENT)]
    return Announcement.decode(payload, who="test").bounds


def model_of(fleet: Fleet, number: int) -> Weights:
    store = BlobStore(fleet.folder / "coordinator" / "blobs")
    return blob.decode(store.read(Digest(fleet.results()[number - 1]["model"])), who="test").weights


def said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [m for m in caplog.messages if what in m]


def test_a_claim_counts_as_the_cap_and_is_reported_once(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(NODES, rounds=2)
    raw = opened(fleet)
    offered = 0

    def lie(_: int) -> None:
        nonlocal offered
        if fleet.runner is not None and fleet.runner.round.number > offered:
            offered = fleet.runner.round.number
            raw.offer(raw.update(samples=131_072))
        raw.answer()

    fleet.run(each=lie)
    for result in fleet.results():
        assert result["bounds"]["max_samples"] == CAP
        assert result["contributors"][BAD] == result["contributors"][BAD] | {
            "samples": CAP,
            "trained": 131_072,
        }
        others = {n: samples_of(n) for n in fleet.nodes if n != BAD}
        assert {n: c["samples"] for n, c in result["contributors"].items() if n != BAD} == others
        assert all("trained" not in c for n, c in result["contributors"].items() if n != BAD)
        assert result["n_samples"] == CAP + sum(others.values())
    (line,) = said(caplog, "run.max_weight_ratio")
    assert line == (
        f"run=run node={BAD} counts for {CAP} samples (run.max_weight_ratio): "
        "it claims 131072, its status reported 33"
    )


def test_the_model_is_the_mean_with_the_capped_weight(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(NODES, rounds=1)
    raw = opened(fleet)
    runner = fleet.runner
    assert runner is not None
    before, terms = runner.server.weights, runner.terms
    lie = raw.update(samples=2**24)
    raw.offer(lie)
    fleet.run(each=lambda _: raw.answer())
    updates = {BAD: (blob.decode(lie, who="test").weights, CAP)}
    for node in fleet.nodes:
        if node != BAD:
            after, samples = update_of(node, 1, before)
            updates[node] = (after - before, samples)
    total = sum(n for _, n in updates.values())
    name = "a/bias"
    mean = sum(n * u[name].astype(np.float64) for u, n in updates.values()) / total
    assert model_of(fleet, 1)[name] == pytest.approx(before[name] + mean, abs=1e-6)
    assert terms.bounds.max_samples == CAP


def test_the_grid_of_the_sum_follows_the_cap_and_no_claim(make_fleet: MakeFleet) -> None:
    """A status that claims a million million pictures makes neither the cap nor a step of the sum coarser."""
    honest, lied = make_fleet(NODES), make_fleet(NODES)
    found = []
    for fleet in (honest, lied):
        fleet.until(lambda: fleet.coordinator and len(fleet.coordinator.roster) == NODES)  # noqa: B023
        assert fleet.coordinator is not None
        if fleet is lied:
            roster = fleet.coordinator.roster
            status = roster[NodeId(BAD)].status.model_copy(update={"samples": 2**40})
            roster.update(NodeId(BAD), status, fleet.broker.now)
        fleet.until(lambda: fleet.runner)  # noqa: B023
        assert fleet.runner is not None
        found.append((fleet.runner.terms.bounds.max_samples, fleet.runner.terms.bits))
    assert found == [(CAP, found[0][1])] * 2


@pytest.mark.parametrize("when", ["after a kill", "twice"])
def test_a_restart_changes_neither_cap_nor_bound(make_fleet: MakeFleet, when: str) -> None:
    """The roster is another then; what was journaled is what is announced."""
    fleet = make_fleet(NODES, rounds=2)
    fleet.until(lambda: fleet.runner is not None and fleet.runner.round.number == 2)
    announced = bounds(fleet)
    for _ in range(2 if when == "twice" else 1):
        fleet.kill_coordinator()
        fleet.kill_node("pi-04")
        fleet.start_node("pi-04", samples=500)
        fleet.start_coordinator()
        fleet.until(lambda: fleet.runner)
        assert fleet.runner is not None and fleet.runner.terms.bounds == announced
    fleet.run()
    assert fleet.results()[1]["bounds"] == announced.model_dump(mode="json")


def test_the_bound_is_a_share_of_the_model_then_follows_the_median(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(NODES, rounds=3, clip=2.5)
    first = fleet.until(lambda: fleet.runner)
    start = first.server.weights.norm()
    assert bounds(fleet).max_norm == pytest.approx(2.5 * FIRST_SHARE * start, rel=1e-5)
    fleet.run()
    results = fleet.results()
    for before, after in pairwise(results):
        assert after["bounds"]["max_norm"] == pytest.approx(2.5 * before["median_norm"], rel=1e-5)
    assert 24 < results[0]["median_norm"] < 25  # 60,200 numbers with a deviation of 0.1


@pytest.mark.parametrize(("above", "good"), [(0.9999, True), (1.01, False)])
def test_an_update_at_the_bound_is_taken_and_one_above_it_refused(
    make_fleet: MakeFleet, above: float, good: bool
) -> None:
    """A node of the version before does not clip: above the bound it is refused with the reason."""
    fleet = make_fleet(NODES, rounds=1)
    raw = opened(fleet)
    allowed = bounds(fleet).max_norm
    own = blob.decode(raw.update(), who="test").weights.norm()
    raw.offer(raw.update(factor=above * allowed / own))
    fleet.run(each=lambda _: raw.answer())
    (result,) = fleet.results()
    assert (BAD in result["contributors"]) == good
    if not good:
        assert f"allowed is {allowed:g}" in result["rejected"][BAD]
        assert raw.receipts[0]["state"] == "rejected"


class Far(FakeTraining):
    """Its updates are a hundred times as long, and clipped as the training child does it."""

    def __init__(self, broker: MemoryBroker):
        super().__init__(broker, 2.0, self._clip)
        self.max_norm: float | None = None

    def start(self, job: Any) -> None:
        self.max_norm = job.max_norm
        super().start(job)

    def _clip(self, document: bytes) -> bytes:
        found = blob.decode(document, who="test")
        assert self.max_norm is not None
        far = Weights({n: 100 * t for n, t in found.weights.items()})
        near = clipped(far, self.max_norm, blob.codec(found.codec))
        return blob.encode(near, codec_name=found.codec, about=found.about)


@pytest.mark.parametrize("codec", ["raw_f32", "f16", "int8"])
def test_a_node_that_clips_is_counted_with_every_codec(make_fleet: MakeFleet, codec: str) -> None:
    fleet = make_fleet(NODES, rounds=3, plan={"codec": codec})
    fleet.trainings[BAD] = Far(fleet.broker)
    fleet.kill_node(BAD)
    fleet.start_node(BAD)
    fleet.run()
    assert [r["n_contributors"] for r in fleet.results()] == [NODES] * 3


def test_one_far_update_does_not_move_the_next_bound(make_fleet: MakeFleet) -> None:
    alone = make_fleet(NODES, rounds=2)
    alone.run()
    fleet = make_fleet(NODES, rounds=2)
    fleet.trainings[BAD] = Far(fleet.broker)
    fleet.kill_node(BAD)
    fleet.start_node(BAD)
    fleet.run()
    (_, honest), (_, lied) = alone.results(), fleet.results()
    assert lied["bounds"]["max_norm"] == pytest.approx(honest["bounds"]["max_norm"], rel=0.02)


def test_a_replaced_node_falls_under_the_same_cap(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(NODES, rounds=1, cohort_size=4, lost_grace_s=0)
    runner = fleet.until(lambda: fleet.runner)
    before = bounds(fleet)
    lost, (reserve,) = runner.round.cohort[0], runner.round.reserve
    raw = RawNode(fleet, reserve)
    fleet.kill_node(lost)
    fleet.until(lambda: reserve in runner.round.cohort)
    raw.offer(raw.update(samples=10**6))
    fleet.run(each=lambda _: raw.answer())
    (result,) = fleet.results()
    assert result["contributors"][reserve]["samples"] == before.max_samples
    assert result["bounds"] == before.model_dump(mode="json")


def test_a_round_that_the_version_before_opened_keeps_its_terms(make_fleet: MakeFleet) -> None:
    """Its journal knows neither cap nor bound: claims within its bound count whole, nobody is clipped."""
    fleet = make_fleet(NODES, rounds=1)
    raw = opened(fleet)
    fleet.until(lambda: fleet.runner is not None and len(fleet.runner.round.accepted) == 2)
    opened_as = fleet.journal.rounds("run")[0].opened
    fleet.kill_coordinator()
    # As commit 8fbd764 wrote it, where 30 pictures were the most.
    old = Bounds(max_samples=64).model_dump(mode="json")
    bits = 52 - 6 - 6 - 3
    journal = Journal(fleet.settings().coordinator.state_dir)
    journal.open_round("run", 1, {**opened_as, "bounds": old, "bits": bits})
    journal.close()
    fleet.start_coordinator()
    fleet.until(lambda: fleet.runner)
    assert bounds(fleet).max_norm == 1e6
    raw.offer(raw.update(factor=30, samples=60))
    fleet.run(each=lambda _: raw.answer())
    (result,) = fleet.results()
    assert result["contributors"][BAD]["samples"] == 60
    assert result["bounds"]["max_samples"] == 64
