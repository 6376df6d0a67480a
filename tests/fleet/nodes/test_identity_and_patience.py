"""Who is who, what is said of it, and what a fleet waits for."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.harness import FakeModelBuilder, MakeFleet
from tests.stand_ins.inline_worker import InlineWorker

from apiary.blobs import BlobStore
from apiary.clocks import Clocks
from apiary.errors import StoreError
from apiary.wire import NodeId
from apiary.wire.messages import NodeStatus
from apiary.wire.topics import TopicKind
from apiary_coordinator import app
from apiary_coordinator.journal import Journal
from apiary_coordinator.resources import Platform, Storage
from apiary_coordinator.service import will
from apiary_edge.training.job import TrainingEvent


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


def test_a_node_that_trains_for_an_hour_stays_alive_in_the_coordinators_eyes(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=1)
    fleet.trainings["pi-01"].seconds = 3600
    fleet.run(seconds=5000)
    (result,) = fleet.results()
    assert sorted(result["contributors"]) == ["pi-00", "pi-01", "pi-02"]
    assert result["contributors"]["pi-01"]["seconds"] >= 3600
    assert result["missing"] == {}


def test_a_clock_that_is_years_off_is_said_once_and_changes_nothing(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = make_fleet(3, rounds=2), make_fleet(3, rounds=2)
    wrong.clock_error["pi-02"] = 20 * 365 * 86400.0
    assert right.run()["model_sha256"] == wrong.run()["model_sha256"]
    (line,) = said(caplog, "its clock is")
    assert line.startswith("node pi-02: its clock is 7300.0 days off")


def test_a_second_coordinator_of_the_federation_is_said_by_both(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(2, rounds=3)
    for _ in range(20):
        fleet.turn()
    settings = fleet.settings()
    folder = fleet.folder / "second"
    journal = Journal(folder)
    second = app.build(
        settings,
        Platform(
            fleet.broker.bus("second", will(settings.topics, "epoch-second")),
            InlineWorker(),
            Clocks(lambda: fleet.broker.now, lambda: fleet.broker.now),
            "epoch-second",
        ),
        Storage(journal, BlobStore(folder / "blobs")),
        one=journal.open_run("other", 0.0, settings.run.model_dump_json()),
        builders=lambda _, blobs: FakeModelBuilder(blobs),
    )
    second.start()
    for _ in range(5):
        second.step(0)
        fleet.turn()
    journal.close()
    assert any("epoch=epoch-second" in line for line in said(caplog, "another coordinator"))


def test_a_second_coordinator_on_one_state_folder_is_refused(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(1)
    with pytest.raises(StoreError, match="another coordinator is using"):
        Journal(fleet.settings().coordinator.state_dir)


def test_two_processes_with_one_node_id_are_said(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(2, rounds=1, min_nodes=3)
    first = fleet.nodes["pi-00"]
    for _ in range(10):
        fleet.turn()
    fleet.start_node("pi-00")
    for _ in range(60):
        first.step(0)
        fleet.turn()
    assert said(caplog, "node=pi-00 another process uses this node id")


def test_a_node_that_was_revoked_and_joined_anew_sees_no_twin(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    """`apiary pki revoke` leaves `lost` at the broker in the node's place."""
    fleet = make_fleet(2, rounds=1, min_nodes=3)
    for _ in range(10):
        fleet.turn()
    topic = fleet.settings().topics.build(TopicKind.NODE_STATUS, node=NodeId("pi-00"))
    warden = fleet.broker.bus("pki", None)
    warden.poll(0)
    assert warden.publish(topic, NodeStatus(state="lost", why="revoked").encode(), retain=True)
    for _ in range(60):
        fleet.turn()
    assert not said(caplog, "another process uses this node id")
    assert fleet.coordinator is not None
    assert fleet.coordinator.roster[NodeId("pi-00")].status.state == "ready"


def test_a_late_joiner_takes_the_place_of_one_that_declined(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, rounds=1, cohort_size=2)
    fleet.trainings["pi-01"].seconds = 40
    joined: list[str] = []

    def disturb(turn: int) -> None:
        runner = fleet.runner
        if runner is not None and not joined and turn > 40:
            joined.append("pi-09")
            fleet.trainings["pi-01"].tells(TrainingEvent(kind="declined", text="this node is too hot"))
            fleet.start_node("pi-09")

    fleet.run(each=disturb)
    (result,) = fleet.results()
    assert sorted(result["contributors"]) == ["pi-00", "pi-09"]
    assert result["missing"] == {"pi-01": "this node is too hot"}


def test_many_late_joiners_are_journaled_together_before_any_is_invited(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cohort of 10,000 nodes is 1.5 MB to journal: once for each of a thousand takes a minute."""
    fleet = make_fleet(8, rounds=1, cohort_size=8)
    for i in range(2, 8):
        fleet.trainings[f"pi-{i:02d}"].seconds = 40
    journaled: list[set[str]] = []
    open_round = Journal.open_round

    def noted(journal: Journal, run: str, number: int, opened: dict[str, Any]) -> None:
        open_round(journal, run, number, opened)
        journaled.append(set(opened["cohort"]))

    monkeypatch.setattr(Journal, "open_round", noted)
    newcomers = {f"pi-{i}" for i in range(20, 26)}
    invited: list[tuple[str, set[str]]] = []
    before = 0

    def disturb(turn: int) -> None:
        nonlocal before
        runner = fleet.runner
        if runner is not None and turn > 40 and not before:
            before = len(journaled)
            run = fleet.hosted
            invite = run.invite

            def noting(node: NodeId) -> None:
                invited.append((node, journaled[-1]))
                invite(node)

            monkeypatch.setattr(run, "invite", noting)
            for i in range(2, 8):
                fleet.trainings[f"pi-{i:02d}"].tells(TrainingEvent(kind="declined", text="too hot"))
            for name in sorted(newcomers):
                fleet.start_node(name)

    fleet.run(each=disturb)
    (result,) = fleet.results()
    assert set(result["contributors"]) == {"pi-00", "pi-01", *newcomers}
    assert {node for node, _ in invited} == newcomers
    assert all(node in cohort for node, cohort in invited)
    assert len(journaled) - before < len(newcomers)


def test_a_full_disk_of_the_coordinator_is_said_and_survived(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_fleet(4, rounds=2).run()["model_sha256"]
    fleet = make_fleet(4, rounds=2)
    really, left = os.posix_fallocate, [6]

    def full(fd: int, offset: int, length: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.parent.name == "spool" and left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert fleet.run()["model_sha256"] == expected
    assert said(caplog, "no room for an update")


def test_a_journal_that_cannot_commit_for_a_while_loses_nothing(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_fleet(4, rounds=2).run()["model_sha256"]
    fleet = make_fleet(4, rounds=2)
    really, calls = Journal.commit, [0]

    def sometimes(self: Journal, *statements: Any) -> None:
        calls[0] += 1
        if calls[0] % 3:
            raise StoreError("the journal refused a commit: disk I/O error")
        really(self, *statements)

    for _ in range(10):
        fleet.turn()
    monkeypatch.setattr(Journal, "commit", sometimes)
    assert fleet.run()["model_sha256"] == expected
    assert said(caplog, "refused a commit")
    assert [len(r["contributors"]) for r in fleet.results()] == [4, 4]


def test_a_node_without_room_for_its_update_declines_with_the_reason(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(3, rounds=1, quorum=0.5)

    def full(update: Any, offer: Any) -> None:
        raise StoreError("cannot move the update: the disk is full")

    monkeypatch.setattr(fleet.nodes["pi-02"]._stores.outbox, "put", full)
    fleet.run()
    (result,) = fleet.results()
    assert result["missing"] == {"pi-02": "cannot move the update: the disk is full"}
    assert sorted(result["contributors"]) == ["pi-00", "pi-01"]
