"""A run from its first model to its last message, by its worker's jobs and the loop's ticks alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.unit.coordinator.run.whole_run import Bench, send

from apiary.errors import RequestRefused, RunFailed, StoreError
from apiary.wire import Digest, NodeId
from apiary.wire.messages import Notice
from apiary_coordinator.model.builder import ExportedModel
from apiary_coordinator.model.warm_start import Ancestor
from apiary_coordinator.run.assignment import Assignment
from apiary_coordinator.run.current_model import CurrentModel, OfferedModel
from apiary_coordinator.run.run import Run
from apiary_coordinator.worker import Lane


def test_the_first_model_is_built_evaluated_and_in_the_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one = Bench(tmp_path)
    one.run.start()
    assert one.stage == "building" and not one.run.demands.labels
    one.work()
    assert one.stage == "waiting" and one.run.demands.labels == ("a", "b")
    assert "run=r building the model recipe=edge_cnn from scratch" in caplog.messages
    assert "run=r the untrained model has accuracy=62.5%" in caplog.messages
    assert one.run.history.labels == ("a", "b")
    assert one.run.history.initial == {"accuracy": 0.625, "loss": 0.5}
    row = one.journal.active_run()
    assert row is not None and row.exported is not None
    assert one.run.exported == ExportedModel.model_validate_json(row.exported)


def test_the_model_that_a_run_goes_on_from_is_judged_on_its_own_pictures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ancestor = Ancestor(run="before", round=3, labels=("a",), accuracy=0.9, added=("b",))
    one = Bench(tmp_path, ancestor=ancestor)
    one.run.start()
    one.work()
    assert "run=r the start model has accuracy=62.5%" in caplog.messages
    assert "run=r labels new: b" in caplog.messages
    exported = one.run.exported
    assert exported is not None and exported.ancestor is not None
    assert exported.ancestor.accuracy_here == 0.625
    row = one.journal.active_run()
    assert row is not None and row.exported is not None
    assert ExportedModel.model_validate_json(row.exported) == exported
    assert one.run.history.ancestor == exported.ancestor


def test_the_first_round_waits_for_nodes_and_then_for_the_last_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one = Bench(tmp_path)
    one.run.start()
    one.work()
    caplog.clear()
    one.come("a", "b")
    one.ticks(9.5)
    waiting = [m for m in caplog.messages if "2 of 3 are ready" in m]
    assert one.stage == "waiting" and len(waiting) == 1, "not with each tick"
    one.ticks(2)
    assert sum("2 of 3 are ready" in m for m in caplog.messages) == 2, "again after a while"
    one.come("c")
    one.ticks(3.5)
    assert one.stage == "waiting", "another may come"
    one.ticks(1)
    assert one.stage == "round" and one.run.runner is not None
    assert sorted(one.run.runner.round.cohort) == ["a", "b", "c"]
    assert any("run=r round=1 opened cohort=3" in m for m in caplog.messages)


def test_the_first_round_waits_once_for_each_node_and_not_for_ever_for_new_names(tmp_path: Path) -> None:
    one = Bench(tmp_path)
    one.run.start()
    one.work()
    one.come("a", "b", "c")
    one.ticks(4.5, each=lambda: one.come("a"))
    assert one.stage == "round", "one that leaves and comes holds up nobody"

    other = Bench(tmp_path / "other")
    other.run.start()
    other.work()
    other.come("a", "b", "c")
    names = (f"n{i}" for i in range(1000))
    other.ticks(35, each=lambda: other.come(next(names)))
    assert other.stage == "waiting", "each may be of the fleet"
    other.ticks(6, each=lambda: other.come(next(names)))
    assert other.stage == "round"


def test_another_reason_for_waiting_is_said_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    one = Bench(tmp_path)
    one.run.start()
    one.work()
    one.ticks(1)
    caplog.clear()
    one.come("a")
    one.ticks(1)
    assert [m for m in caplog.messages if "1 of 3 are ready" in m]


def test_a_node_is_invited_in_the_runs_name(tmp_path: Path) -> None:
    one = Bench(tmp_path, settle_s=0)
    one.run.start()
    one.work()
    one.run.invite(NodeId("a"))
    assert one.invited() == [], "no round is open"
    one.come("a", "b", "c")
    one.ticks(1)
    one.run.invite(NodeId("b"))
    assert one.invited() == ["b"]


def test_between_rounds_a_node_learns_that_nothing_is_open_and_never_while_one_is_resumed(
    tmp_path: Path,
) -> None:
    one = Bench(tmp_path, settle_s=0)
    assert one.run.notice(NodeId("a")) == Notice()
    one.run.start()
    assert one.run.notice(NodeId("a")) == Notice()
    one.work()
    one.come("a", "b", "c")
    one.ticks(1)
    notice = one.run.notice(NodeId("a"))
    assert notice is not None and notice.invited
    # As after a restart in the middle of the round.
    assert one.run.runner is not None
    one.run.runner.collector.close(remove=False)
    again = Run(
        Assignment("r", 50.0, one.run._settings, one.builder, exported=one.run.exported),
        one.resources,
        Lane(),
        roster=one.roster,
        epoch="e2",
        after_run=one.after.append,
    )
    again.start()
    assert again.notice(NodeId("a")) is None, "it may be training for it"
    one.work()
    assert again.runner is not None and again.runner.round.number == 1
    notice = again.notice(NodeId("a"))
    assert notice is not None and notice.invited
    again.runner.abandon("it is over")
    assert again.runner is None and again.notice(NodeId("a")) == Notice()


def test_what_the_disk_refuses_is_tried_again_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Bench(tmp_path, settle_s=0)
    one.run.start()
    one.work()
    one.come("a", "b", "c")

    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(one.journal, "commit", full)
        one.now += 1
        with pytest.raises(StoreError):
            one.run.tick()
        one.ticks(4.75)  # neither the log nor the disk is flooded
        one.now += 0.25
        with pytest.raises(StoreError):
            one.run.tick()
    one.ticks(4.75)
    assert one.stage == "waiting"
    one.ticks(0.5)
    assert one.stage == "round"


def test_a_run_that_is_stopped_before_its_model_is_there_ends_at_once(tmp_path: Path) -> None:
    one = Bench(tmp_path, stop="by an operator")
    one.run.start()
    assert one.stage == "done" and not one.worker.jobs
    row = one.journal.run("r")
    assert row is not None and (row.state, row.stop) == ("stopped", "by an operator")


def test_a_run_that_is_stopped_while_it_waits_parts_once_the_broker_has_all(tmp_path: Path) -> None:
    one = Bench(tmp_path)
    one.run.start()
    one.work()
    one.run.stop("by an operator")
    assert one.stage == "parting"
    one.ticks(1)
    assert one.stage == "done"
    row = one.journal.run("r")
    assert row is not None and row.state == "stopped"
    assert one.after == [], "there is no result to follow up"


def test_a_broker_that_takes_nothing_keeps_a_run_from_its_end_for_a_minute_at_most(tmp_path: Path) -> None:
    one = Bench(tmp_path)
    one.run.start()
    one.work()
    one.run.stop("by an operator")
    assert one.resources.outgoing.bus.backlog
    one.resources.outgoing.bus.poll = lambda *_: []  # type: ignore[method-assign]  # a broker that is silent
    one.ticks(59)
    assert one.stage == "parting"
    one.ticks(2)
    assert one.stage == "done"


def test_rounds_that_fail_end_a_run_without_a_model(tmp_path: Path) -> None:
    one = Bench(tmp_path, settle_s=0, deadline_s=5, max_failed_rounds=2)
    one.run.start()
    one.work()
    one.come("a", "b", "c")
    with pytest.raises(RunFailed, match=r"run r ended without a model: 2 rounds in a row failed"):
        one.ticks(30, one.work)
    assert [line["state"] for line in one.history() if line["kind"] == "round"] == ["failed", "failed"]
    row = one.journal.run("r")
    assert row is not None and row.state == "failed"


def test_a_run_of_two_rounds_is_finished_followed_up_and_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one = Bench(tmp_path, settle_s=0)
    one.run.start()
    one.work()
    one.come("a", "b", "c")
    seen: list[str] = []
    for _ in range(2):
        one.ticks(1)
        assert one.stage == "round"
        for node in "abc":
            send(one, node)
        one.work()
        one.now += 0.25
        one.run.tick()
        seen.append(one.stage)
    assert seen[-1] == "finishing"
    assert "run=r all 2 rounds are done; finishing with round=1" in caplog.messages
    with pytest.raises(RequestRefused, match="run r is being finished already"):
        one.run.stop("by an operator")
    assert one.after == [] and one.run.summary == {}
    one.work()
    assert one.stage == "parting"
    assert one.after == [tmp_path / "runs" / "r"] and one.run.summary["best_round"] == 1
    one.ticks(1)
    assert one.stage == "done"
    row = one.journal.run("r")
    assert row is not None and (row.state, row.stop) == ("finished", "all 2 rounds are done")
    kinds = [line["kind"] for line in one.history()]
    assert kinds == ["run", "round", "round", "end"]
    assert one.history()[0]["initial"] == {"accuracy": 0.625, "loss": 0.5}
    assert [line["n_contributors"] for line in one.history()[1:3]] == [3, 3]


@pytest.mark.parametrize(
    ("accuracy", "labels", "from_a_model", "after_rounds"),
    [
        (0.4, "ab", False, 1),
        (0.99, "ab", False, 2),
        (0.4, "abc", False, 2),
        (0.99, "ab", True, 2),
        (0.4, "abc", True, 1),
    ],
    ids=[
        "no better: at once",
        "better: at the end",
        "of other labels: at the end",
        "as good as its ancestor, and worse than what is there: at the end",
        "as good as its ancestor, and of other labels: at once",
    ],
)
def test_when_the_model_of_another_run_gives_way(
    tmp_path: Path, accuracy: float, labels: str, from_a_model: bool, after_rounds: int
) -> None:
    ancestor = Ancestor(run="before", round=3, labels=("a", "b"), accuracy=0.9) if from_a_model else None
    one = Bench(tmp_path, settle_s=0, rounds=2, ancestor=ancestor).opened()
    exported = json.dumps({"labels": list(labels)})
    before = OfferedModel("before", {"round": 2, "accuracy": accuracy}, Digest("0" * 64), exported)

    class Place(CurrentModel):
        offered: ClassVar[list[tuple[str, int]]] = []

        def read(self) -> OfferedModel | None:
            return before if not self.offered else super().read()

        def offer(self, run: str, number: int) -> OfferedModel | None:
            self.offered.append((run, one.run.history.closed))
            return super().offer(run, number)

    Place.offered.clear()
    one.run._current = Place(one.journal)
    for _ in range(2):
        for node in "abc":
            send(one, node)
        one.work()
        one.ticks(1)
    assert Place.offered == [("r", after_rounds)], "once, since the second round is no better"


def test_what_fails_after_a_run_does_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Bench(tmp_path, settle_s=0, rounds=1).opened()
    for node in "abc":
        send(one, node)

    def fails(folder: Path) -> None:
        raise ValueError("no publisher")

    one.run._after_run = fails
    one.work()
    one.ticks(1, one.work)
    assert one.stage == "done"
    assert "run=r is finished, but what follows it failed" in caplog.messages


def test_a_run_that_is_stopped_while_its_model_is_built_drops_the_model(tmp_path: Path) -> None:
    one = Bench(tmp_path)
    one.run.start()
    one.run.stop("by an operator")
    assert one.stage == "done" and one.run.lane.left
    row = one.journal.run("r")
    assert row is not None and (row.state, row.stop) == ("stopped", "by an operator")


def test_a_run_that_is_stopped_while_its_first_model_is_evaluated_comes_to_its_end(tmp_path: Path) -> None:
    one = Bench(tmp_path)
    one.run.start()
    one.worker.step()  # built; the evaluation is the next job
    one.run.stop("by an operator")
    one.run.stop("by another one")
    assert one.stage == "building" and not one.run.lane.left
    one.work()
    assert one.stage == "parting"
    row = one.journal.active_run()
    assert row is not None and row.stop == "by an operator"


def test_a_round_that_was_given_up_is_announced_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Bench(tmp_path, settle_s=0).opened()
    announced: list[str] = []
    announce = one.run._announcer.announce

    def noted(runner: Any) -> None:
        announced.append(runner.round.phase.value)
        announce(runner)

    monkeypatch.setattr(one.run._announcer, "announce", noted)
    one.run.stop("by an operator")
    assert announced and announced[-1] == "failed", "nodes that train for it stop"
    assert one.run.runner is None
