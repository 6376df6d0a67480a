"""Whole runs with 20 nodes, undisturbed and disturbed: every sample counted once, the same bits."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tests.fleet.harness import Fleet, MakeFleet, samples_of, update_of
from tests.stand_ins.memory_bus import LinkFault, MemoryBroker

from apiary.blobs import BlobStore
from apiary.wire import Digest, blob

NODES = 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final model of a run in which nothing goes wrong."""
    fleet = Fleet(tmp_path_factory.mktemp("calm"), NODES)
    summary = fleet.run()
    fleet.close()
    return str(summary["model_sha256"])


def assert_counted_once(fleet: Fleet) -> None:
    results = fleet.results()
    assert [r["state"] for r in results] == ["closed"] * 3
    for result in results:
        assert {n: c["samples"] for n, c in result["contributors"].items()} == {
            f"pi-{i:02d}": samples_of(f"pi-{i:02d}") for i in range(NODES)
        }


def test_the_first_round_is_the_exact_mean_of_what_the_nodes_trained(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=1)
    summary = fleet.run()
    store = BlobStore(fleet.folder / "coordinator" / "blobs")
    final = blob.decode(store.read(Digest(summary["model_sha256"])), who="test").weights
    assert fleet.hosted.exported is not None
    first = fleet.hosted.exported.initial.digest
    initial = blob.decode(store.read(Digest(first)), who="test").weights
    updates = {n: update_of(n, 1, initial) for n in fleet.nodes}
    total = sum(samples for _, samples in updates.values())
    for i in np.random.default_rng(0).integers(0, 200, size=40):
        exact = sum(
            Fraction(float((after - initial)["a/bias"][i])) * samples for after, samples in updates.values()
        )
        expected = float(Fraction(float(initial["a/bias"][i])) + exact / total)
        assert final["a/bias"][i] == np.float32(expected)


def test_an_undisturbed_run_counts_everyone_once(make_fleet: MakeFleet, undisturbed: str) -> None:
    fleet = make_fleet(NODES)
    assert fleet.run()["model_sha256"] == undisturbed
    assert_counted_once(fleet)


@pytest.mark.parametrize(
    "fault",
    [
        LinkFault("drop", probability=0.1),
        LinkFault("duplicate", probability=0.3),
        LinkFault("reorder", probability=0.5),
        LinkFault("delay", probability=0.3, seconds=5),
        LinkFault("corrupt", "apiary-blob/#", probability=0.1),
        LinkFault("cut", probability=0.002, seconds=3),
    ],
    ids=lambda fault: fault.kind,
)
def test_bad_links_change_nothing(make_fleet: MakeFleet, undisturbed: str, fault: LinkFault) -> None:
    broker = MemoryBroker(seed=3, latency_s=0.01, faults=[fault])
    # Longer than a node needs to ask what is current, twice: an announcement and an answer may be lost.
    fleet = make_fleet(NODES, broker=broker, deadline_s=600)
    assert fleet.run()["model_sha256"] == undisturbed
    assert broker.struck[fault.kind] > 0
    assert_counted_once(fleet)


@pytest.mark.parametrize("seed", range(4))
def test_killing_anyone_at_any_time_changes_nothing(
    make_fleet: MakeFleet, undisturbed: str, seed: int
) -> None:
    fleet = make_fleet(NODES)
    chance = random.Random(seed)
    down: dict[str, int] = {}
    kills = 0

    def disturb(turn: int) -> None:
        nonlocal kills
        for name, until in list(down.items()):
            if turn >= until:
                del down[name]
                fleet.start_coordinator() if name == "coordinator" else fleet.start_node(name)
        if kills < 40 and chance.random() < 0.15:
            victim = chance.choice(["coordinator", "coordinator", *fleet.nodes])
            if victim not in down:
                kills += 1
                down[victim] = turn + chance.randrange(1, 60)
                fleet.kill_coordinator() if victim == "coordinator" else fleet.kill_node(victim)

    assert fleet.run(each=disturb)["model_sha256"] == undisturbed
    assert kills >= 10
    assert_counted_once(fleet)


def test_killed_in_every_phase_of_every_round_it_goes_on_from_the_newest_model(make_fleet: MakeFleet) -> None:
    """And a node in each round: kills that come by chance seldom fall into a run's last rounds."""
    calm = make_fleet(4, rounds=4)
    calm.run()
    fleet = make_fleet(4, rounds=4, worker_s=1.0)
    killed: set[tuple[int, str]] = set()

    def disturb(turn: int) -> None:
        runner = fleet.runner
        closed = len(fleet.results())
        where = (runner.round.number, runner.round.phase.value) if runner else (closed, "between rounds")
        if where in killed or where[0] == 0:
            return
        killed.add(where)
        fleet.kill_coordinator()
        if where[1] == "collecting":
            node = f"pi-{where[0] - 1:02d}"
            fleet.kill_node(node)
            fleet.start_node(node)
        fleet.start_coordinator()

    fleet.run(each=disturb)
    phases = ("open", "collecting", "aggregating", "evaluating")
    assert killed >= {(number, phase) for number in (1, 2, 3, 4) for phase in phases}
    assert [r["model"] for r in fleet.results()] == [r["model"] for r in calm.results()]


def test_a_broker_that_forgets_everything_changes_nothing(make_fleet: MakeFleet, undisturbed: str) -> None:
    fleet = make_fleet(NODES)

    def disturb(turn: int) -> None:
        if turn % 37 == 36:
            fleet.broker.forget()

    assert fleet.run(each=disturb)["model_sha256"] == undisturbed
    assert_counted_once(fleet)


def test_a_node_that_never_comes_back_is_replaced_from_the_reserve(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(6, rounds=1, cohort_size=3, lost_grace_s=20)
    killed: list[str] = []

    def disturb(turn: int) -> None:
        runner = fleet.runner
        if runner is not None and not killed:
            killed.append(runner.round.cohort[0])
            fleet.kill_node(killed[0])

    fleet.run(each=disturb)
    (result,) = fleet.results()
    assert len(result["contributors"]) == 3
    assert killed[0] not in result["contributors"]
    assert result["missing"] == {killed[0]: "connection lost"}


def test_stragglers_are_left_behind_at_the_deadline(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, rounds=1, deadline_s=60, quorum=0.75)
    fleet.trainings["pi-02"].seconds = 10_000
    fleet.run()
    (result,) = fleet.results()
    assert sorted(result["contributors"]) == ["pi-00", "pi-01", "pi-03"]
    assert result["missing"] == {"pi-02": "no update in time"}


def test_a_round_without_its_quorum_fails_and_the_run_goes_on_from_the_last_model(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(4, rounds=2, deadline_s=60, quorum=0.75)

    def disturb(turn: int) -> None:
        slow = 10_000 if len(fleet.results()) == 1 else 2
        for name in ("pi-00", "pi-01"):
            fleet.trainings[name].seconds = slow

    fleet.run(each=disturb)
    states = [r["state"] for r in fleet.results()]
    assert states == ["closed", "failed", "closed"]
    assert fleet.results()[1]["why"] == (
        "2 of 4 nodes sent a good update, the quorum is 3; 2 of 2 nodes: no update in time"
    )


def test_an_update_for_a_round_that_is_over_is_dropped_with_a_receipt(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=3, deadline_s=30, quorum=0.5)
    fleet.broker.script(LinkFault("drop", "apiary/+/node/pi-01/offer", times=5))
    fleet.run()
    first, *_, last = fleet.results()
    assert first["missing"] == {"pi-01": "no update in time"}
    assert "pi-01" in last["contributors"]
    assert fleet.nodes["pi-01"]._stores.outbox.waiting() == []


def test_the_same_seed_draws_the_same_cohorts(make_fleet: MakeFleet) -> None:
    first, second = (make_fleet(10, fraction=0.3, min_nodes=2) for _ in range(2))
    assert first.run()["contributors"] == second.run()["contributors"]
    assert {len(c) for c in first.hosted.summary["contributors"].values()} == {3}


def test_more_nodes_than_a_readable_announcement_holds_are_invited_one_by_one(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apiary_coordinator.run.messages.READABLE_BYTES", 100)
    fleet = make_fleet(5, rounds=1)
    fleet.run()
    assert len(fleet.results()[0]["contributors"]) == 5


def test_memory_of_the_spool_is_given_back(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet(4, rounds=2)
    fleet.run()
    assert list((fleet.folder / "coordinator" / "spool").iterdir()) == []
    assert len(list((fleet.folder / "coordinator" / "blobs").iterdir())) <= 6
