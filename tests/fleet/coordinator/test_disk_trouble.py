"""What the coordinator's disk and machine may do to a run at its seams: said, survived, and paid for once."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet
from tests.stand_ins.slow_worker import SlowWorker

from apiary.blobs import BlobStore
from apiary.errors import RunFailed, StoreError
from apiary.wire import Digest
from apiary.wire.messages import RoundResult
from apiary_coordinator.journal import Journal
from apiary_coordinator.round.runner import RoundRunner
from apiary_coordinator.run.announcer import Announcer
from apiary_coordinator.run.run import Run
from apiary_coordinator.updates.spool import Spool
from apiary_coordinator.worker import Done

FULL = "the journal refused a commit: database or disk is full"


def run_of(fleet: Fleet) -> Run:
    return fleet.hosted


def accepted(fleet: Fleet) -> int:
    runner = run_of(fleet).runner
    return len(runner.round.accepted) if runner is not None else 0


class Refusing:
    """`Journal.open_round` on a disk that is full for `times` commits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.times = 0
        self.asked = 0
        real = Journal.open_round

        def open_round(journal: Journal, run: str, number: int, opened: dict[str, Any]) -> None:
            self.asked += 1
            if self.times > 0:
                self.times -= 1
                raise StoreError(FULL)
            real(journal, run, number, opened)

        monkeypatch.setattr(Journal, "open_round", open_round)


def test_a_full_disk_is_asked_again_after_a_pause(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Refusing(monkeypatch)
    disk.times = 4
    fleet = make_fleet(3, rounds=1)
    fleet.until(lambda: run_of(fleet).runner)
    assert disk.asked == caplog.messages.count(FULL) + 1 == 5
    assert fleet.broker.now > 4 * 5
    assert fleet.run()["rounds_closed"] == 1


def test_a_round_is_taken_up_once_however_often_the_disk_refuses(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All updates are there, and what the disk refuses is the seal on them: the first step of a restart."""
    undisturbed = make_fleet(3, rounds=2).run()
    disk = Refusing(monkeypatch)
    fleet = make_fleet(3, rounds=2)
    fleet.until(lambda: accepted(fleet) == 2)
    disk.times = 10_000
    fleet.until(lambda: fleet._journal and len(fleet._journal.accepted("run", 1)) == 3)
    fleet.kill_coordinator()
    made: list[int] = []
    real = Run._begin

    def begin(run: Run, runner: RoundRunner) -> None:
        made.append(runner.round.number)
        real(run, runner)

    monkeypatch.setattr(Run, "_begin", begin)
    disk.times = 1
    for training in fleet.trainings.values():
        training.seconds = 20  # the second round is still open when the first is tried again
    fleet.start_coordinator()
    summary = fleet.run()
    assert made == [1, 2]
    assert (summary["model_sha256"], summary["stop"]) == (undisturbed["model_sha256"], undisturbed["stop"])


@pytest.mark.parametrize("refused", ["remove", "read"])
def test_what_follows_a_round_is_settled_later_where_the_disk_refuses(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """The round is closed and journaled; a model cannot be removed, or the best one not be read."""
    fleet = make_fleet(3, rounds=3)
    fleet.until(lambda: len(fleet.results()) == 2)
    left = [FULL, FULL]
    real = getattr(BlobStore, refused)

    def refuse(store: BlobStore, digest: Digest) -> Any:
        if left and store._folder == fleet.folder / "coordinator" / "blobs":
            raise StoreError(left.pop())
        return real(store, digest)

    monkeypatch.setattr(BlobStore, refused, refuse)
    assert fleet.run()["rounds_closed"] == 3
    assert not left and caplog.messages.count(FULL) >= 1
    assert [r["round"] for r in fleet.results()] == [1, 2, 3]


def test_a_model_that_cannot_be_told_of_yet_does_not_end_its_run(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(3, rounds=3)
    fleet.until(lambda: len(fleet.results()) == 1)
    left = [FULL, FULL]
    real = Announcer.result

    def result(announcer: Announcer, result: RoundResult) -> None:
        if left:
            raise StoreError(left.pop())
        real(announcer, result)

    monkeypatch.setattr(Announcer, "result", result)
    assert fleet.run()["rounds_closed"] == 3
    assert not left and any(FULL in message for message in caplog.messages)


def test_a_round_is_taken_up_without_reading_its_updates_on_the_loop(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large fleet they are gigabytes, and meanwhile nobody would be answered."""
    fleet = make_fleet(3, rounds=1)
    fleet.until(lambda: accepted(fleet) == 2)
    fleet.kill_coordinator()
    at_work, looks = [False], []
    view, run = Spool.view, SlowWorker._run

    def looked(spool: Spool, slot: int, size: int) -> Any:
        looks.append(at_work[0])
        return view(spool, slot, size)

    def working(worker: SlowWorker, *job: Any) -> None:
        at_work[0] = True
        run(worker, *job)
        at_work[0] = False

    monkeypatch.setattr(Spool, "view", looked)
    monkeypatch.setattr(SlowWorker, "_run", working)
    fleet.start_coordinator()
    fleet.run()
    assert len(looks) >= 4 and all(looks)
    assert fleet.results()[0]["n_contributors"] == 3


def test_who_was_lost_while_the_coordinator_was_down_is_not_waited_for(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last will came while the model was still being judged, and nobody says it again."""
    fleet = make_fleet(3, rounds=1, lost_grace_s=20, first_deadline_s=4000)
    fleet.trainings["pi-02"].seconds = 10_000
    fleet.until(lambda: accepted(fleet) == 2)
    fleet.kill_coordinator()
    fleet.kill_node("pi-02")
    slow = fleet.broker.now + 10
    real = SlowWorker.collect

    def collect(worker: SlowWorker) -> list[Done]:
        return real(worker) if fleet.broker.now >= slow else []

    monkeypatch.setattr(SlowWorker, "collect", collect)
    fleet.start_coordinator()
    began = fleet.broker.now
    fleet.run(seconds=100)
    assert fleet.broker.now - began < 40
    (result,) = fleet.results()
    assert (result["n_contributors"], result["missing"]) == (2, {"pi-02": "connection lost"})


def test_nobody_gives_up_its_training_while_a_round_is_being_taken_up(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its updates are read and its model judged, for minutes perhaps: until then no word is the right one."""
    fleet = make_fleet(3, rounds=1)
    for training in fleet.trainings.values():
        training.seconds = 60
    fleet.until(lambda: all(training.started for training in fleet.trainings.values()))
    fleet.kill_coordinator()
    slow = fleet.broker.now + 20
    real = SlowWorker.collect

    def collect(worker: SlowWorker) -> list[Done]:
        return real(worker) if fleet.broker.now >= slow else []

    monkeypatch.setattr(SlowWorker, "collect", collect)
    fleet.start_coordinator()
    fleet.run()
    assert fleet.results()[0]["n_contributors"] == 3
    assert [training.started for training in fleet.trainings.values()] == [1, 1, 1]


@pytest.mark.parametrize("stay", [False, True])
def test_what_follows_a_run_does_not_fail_it(
    make_fleet: MakeFleet, stay: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(3, rounds=1, stay=stay)
    assert fleet.coordinator is not None

    def inspect(folder: Path) -> None:
        raise subprocess.TimeoutExpired("the report", 120)

    fleet.coordinator._after_run = inspect
    if stay:
        fleet.ask("run.start", name="run")
        fleet.until(lambda: fleet._journal and fleet._journal.active_run() is None)
    else:
        assert fleet.run()["rounds_closed"] == 1
    assert "run=run is finished, but what follows it failed" in caplog.messages
    assert fleet._journal is not None
    row = fleet._journal.run("run")
    assert row is not None and row.state == "finished"


def test_a_model_that_is_gone_ends_its_run_and_says_so(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=3, stay=True)
    fleet.ask("run.start", name="run")
    fleet.until(lambda: len(fleet.results()) == 1)
    digest = fleet.results()[0]["model"]
    fleet.kill_coordinator()
    (fleet.folder / "coordinator" / "blobs" / digest).write_bytes(b"torn")
    fleet.start_coordinator()
    journal = fleet._journal
    assert journal is not None
    fleet.until(lambda: journal.active_run() is None)
    row = journal.run("run")
    assert row is not None and row.state == "failed"
    assert f"its model {digest[:12]} is damaged or gone from" in (row.stop or "")
    assert fleet.ask("run.start", name="next").state == "done"
    fleet.until(lambda: len(journal.rounds("next")) == 1)


def test_alone_it_fails_with_the_run(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, rounds=3)
    fleet.until(lambda: len(fleet.results()) == 1)
    digest = fleet.results()[0]["model"]
    fleet.kill_coordinator()
    (fleet.folder / "coordinator" / "blobs" / digest).unlink()
    with pytest.raises(RunFailed, match="damaged or gone"):
        fleet.start_coordinator()
