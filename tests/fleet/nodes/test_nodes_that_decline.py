"""Nodes that cannot train: for their labels, which the coordinator sees, or for what only they know."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from tests.fleet.harness import FakeModelBuilder, Fleet, MakeFleet

from apiary.bus.bus import Received
from apiary.errors import DataError, RunFailed
from apiary.wire import NodeId
from apiary.wire.messages import Notice
from apiary.wire.topics import TopicKind
from apiary_coordinator.fleet.rests import FIRST_S
from apiary_edge.training.job import TrainingEvent


def declines(fleet: Fleet, node: str, why: str = "3 pictures of 'a' cannot be read") -> None:
    """Its training child declines each round from now on."""
    training = fleet.trainings[node]
    really = training.start

    def start(job: Any) -> None:
        really(job)
        training.tells(TrainingEvent(kind="declined", text=why))

    training.start = start  # type: ignore[method-assign]


def labels_of(fleet: Fleet, node: str, **labels: int) -> None:
    """Give a node pictures of its own."""
    folder = fleet.folder / f"pictures-{node}"
    shutil.rmtree(folder, ignore_errors=True)
    for label, count in labels.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            (folder / label / f"{i}.png").touch()
    fleet.nodes[node]._presence._data_dir = folder
    fleet.nodes[node]._presence._counted_at = -1e9


def drawn(fleet: Fleet) -> list[list[str]]:
    return [sorted(result["shares"]) for result in fleet.results()]


def test_a_node_that_declined_is_not_drawn_at_once_and_keeps_nobody_waiting(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=4)
    declines(fleet, "pi-01")
    fleet.run()
    assert drawn(fleet) == [["pi-00", "pi-01", "pi-02"], *[["pi-00", "pi-02"]] * 3]
    assert fleet.results()[0]["missing"] == {"pi-01": "3 pictures of 'a' cannot be read"}
    assert fleet.trainings["pi-01"].started == 1


def test_it_is_drawn_again_after_its_pause_or_once_its_data_is_other(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=40, deadline_s=500)
    for node in fleet.nodes:
        fleet.trainings[node].seconds = 20.0
    declines(fleet, "pi-01")
    began = fleet.until(lambda: fleet.trainings["pi-01"].started == 1 and fleet.broker.now, 60)
    again = fleet.until(lambda: fleet.trainings["pi-01"].started == 2 and fleet.broker.now, 300)
    assert FIRST_S <= again - began < FIRST_S + 30
    for _ in range(50):
        fleet.turn()
    labels_of(fleet, "pi-01", a=31)
    fleet.until(lambda: fleet.trainings["pi-01"].started == 3, 30)


def test_a_node_that_sends_nothing_twice_keeps_the_others_from_no_third_round(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=5, deadline_s=200, quorum=0.5)
    for node in fleet.nodes:
        fleet.trainings[node].seconds = 5.0
    fleet.trainings["pi-01"].seconds = 10_000.0
    fleet.run()
    assert drawn(fleet) == [["pi-00", "pi-01", "pi-02"]] * 2 + [["pi-00", "pi-02"]] * 3
    assert fleet.results()[1]["missing"] == {"pi-01": "no update in time"}
    assert [result["seconds"] > 199 for result in fleet.results()] == [True, True, False, False, False]


def test_a_run_whose_nodes_all_decline_says_why_in_its_last_line(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=2, max_failed_rounds=2)
    declines(fleet, "pi-00", "/home/a: 3 pictures cannot be read")
    declines(fleet, "pi-01", "/home/b: 17 pictures cannot be read")
    declines(fleet, "pi-02", "too hot")
    with pytest.raises(RunFailed) as failed:
        fleet.run()
    why = (
        "2 rounds in a row failed; the last: 0 of 3 nodes sent a good update, the quorum is 2; "
        "2 of 3 nodes: /home/a: 3 pictures cannot be read"
    )
    assert str(failed.value) == f"run run ended without a model: {why}"
    row = fleet.journal.run("run")
    assert row is not None and (row.state, row.stop) == ("failed", why)
    assert fleet.broker.now > FIRST_S  # not one round after the other


def test_nodes_with_other_labels_are_not_drawn_and_said_at_once(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(3, stay=True, min_nodes=2, rounds=2)
    labels_of(fleet, "pi-01", bird=9)
    for _ in range(50):
        fleet.turn()
    why = (
        "none of its labels (bird) is one of the model's (a, b): "
        "rename its labels, or add them at the coordinator"
    )
    assert [m for m in caplog.messages if "not drawn" in m] == [f"nodes=1 not drawn: pi-01: {why}"]
    heard: Any = fleet.ask("node.heard").result
    assert heard["unfit"] == {"pi-01": why}
    fleet.ask("run.start", name="run")
    fleet.until(lambda: len(fleet.results()) == 2, 120)
    assert drawn(fleet) == [["pi-00", "pi-02"]] * 2
    assert fleet.trainings["pi-01"].started == 0
    labels_of(fleet, "pi-01", b=9)
    fleet.until(lambda: not fleet.ask("node.heard").result["unfit"], 30)  # type: ignore[index, call-overload]
    assert len([m for m in caplog.messages if "not drawn" in m]) == 1


def test_a_label_of_one_node_alone_and_one_picture_are_enough(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, stay=True, min_nodes=3, rounds=1)
    labels_of(fleet, "pi-01", b=1)
    labels_of(fleet, "pi-02", b=0, a=1, bird=5)
    fleet.ask("run.start", name="run")
    fleet.until(fleet.results, 120)
    assert drawn(fleet) == [["pi-00", "pi-01", "pi-02"]]


def notices(fleet: Fleet, node: str) -> list[Notice]:
    bus = fleet.broker.bus("spy", None)
    bus.subscribe(fleet.settings().topics.build(TopicKind.NODE_NOTICE, node=NodeId(node)))
    found: list[Notice] = []

    def heard() -> bool:
        found.extend(Notice.decode(e.payload, who="x") for e in bus.poll(0) if isinstance(e, Received))
        return bool(found)

    fleet.until(heard, 90)
    bus.close()
    return found


def test_a_coordinator_that_stays_says_its_labels_before_its_first_run(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, stay=True)
    assert [n.labels for n in notices(fleet, "pi-00")] == [["a", "b"]]
    fleet.kill_coordinator()
    fleet.start_coordinator()
    assert notices(fleet, "pi-01")[0].labels == ["a", "b"]


def test_labels_that_come_later_are_said_later(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_yet(self: FakeModelBuilder) -> tuple[str, ...]:
        raise DataError("no held-out pictures")

    with monkeypatch.context() as patched:
        patched.setattr(FakeModelBuilder, "labels", none_yet)
        fleet = make_fleet(2, stay=True)
        assert notices(fleet, "pi-00")[0].labels is None
        for _ in range(2000):
            fleet.turn()
    assert caplog.messages.count("no run can begin yet: no held-out pictures") == 1
    fleet.until(lambda: notices(fleet, "pi-00")[-1].labels == ["a", "b"], 200)
