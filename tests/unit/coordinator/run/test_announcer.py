"""What a run publishes of a round: to all, to one node, and how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.coordinator.round.running import Running

from apiary.settings import RunSettings
from apiary.wire import NodeId
from apiary.wire.messages import Announcement, Notice, RoundResult
from apiary_coordinator.run.announcer import Announcer, publish_result


class Outlet:
    """Notes what is sent."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, str | None]] = []
        self.metrics: dict[str, float] = {}

    def send(self, message: Any, node: NodeId | None = None) -> None:
        self.messages.append((message, node))

    def metric(self, name: str, value: float) -> None:
        self.metrics[name] = value


def announcer(outlet: Outlet) -> Announcer:
    return Announcer("r", RunSettings(rounds=9), outlet=outlet, epoch="e1")  # type: ignore[arg-type]  # stand-ins


def test_a_round_is_announced_to_all_with_its_cohort(tmp_path: Path) -> None:
    one, outlet = Running(tmp_path, "abc").open(), Outlet()
    announcer(outlet).announce(one.runner)
    ((sent, node),) = outlet.messages
    assert isinstance(sent, Announcement) and node is None
    assert (sent.run, sent.round, sent.state, sent.epoch) == ("r", 1, "open", "e1")
    assert sorted(sent.cohort or ()) == ["a", "b", "c"]
    one.leave()


def test_a_cohort_that_has_no_room_is_invited_node_by_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, outlet = Running(tmp_path, "abc").open(), Outlet()
    with_many = announcer(outlet)
    made = with_many.announcement(one.runner)
    short = made.model_copy(update={"cohort": None})
    monkeypatch.setattr(with_many, "announcement", lambda runner: short)
    with_many.announce(one.runner)
    assert outlet.messages[0] == (short, None)
    assert sorted(str(node) for _, node in outlet.messages[1:]) == ["a", "b", "c"]
    for notice, _ in outlet.messages[1:]:
        assert isinstance(notice, Notice)
        assert (notice.invited, notice.again) == (True, None)
        assert notice.announcement is not None and notice.announcement.cohort is None
    one.leave()


def test_a_notice_says_whether_its_node_belongs_to_the_round(tmp_path: Path) -> None:
    one, outlet = Running(tmp_path, "abc").open(), Outlet()
    said = announcer(outlet)
    for node, invited in (("a", True), ("z", False)):
        notice = said.notice(one.runner, NodeId(node))
        assert (notice.invited, notice.again) == (invited, None)
        assert notice.announcement is not None and notice.announcement.cohort is None
    assert outlet.messages == []
    one.leave()


def test_a_node_whose_update_is_gone_is_invited_to_train_again(tmp_path: Path) -> None:
    one = Running(tmp_path, "abc").open()
    one.send("a")
    one.work()
    one.send("b")
    one.work()
    one.leave()
    again = Running(tmp_path, "abc").resume(whole=lambda node: node != "a")
    outlet = Outlet()
    announcer(outlet).invite(again.runner, NodeId("a"))
    announcer(outlet).invite(again.runner, NodeId("c"))
    assert [(node, notice.invited, notice.again) for notice, node in outlet.messages] == [
        ("a", True, True),
        ("c", True, None),
    ]
    assert announcer(outlet).notice(again.runner, NodeId("a")).again is True
    again.leave()


def test_a_round_that_takes_no_more_updates_invites_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, outlet = Running(tmp_path, "abc").open(), Outlet()
    said = announcer(outlet)
    shut = said.announcement(one.runner).model_copy(update={"cohort": None, "state": "aggregating"})
    monkeypatch.setattr(said, "announcement", lambda runner: shut)
    said.announce(one.runner)
    assert outlet.messages == [(shut, None)]
    one.leave()


def test_the_end_is_published_with_the_last_model(tmp_path: Path) -> None:
    one, outlet = Running(tmp_path, "abc").open(), Outlet()
    announcer(outlet).finished(one.runner.server, 3)
    ((sent, node),) = outlet.messages
    assert node is None and (sent.run, sent.round, sent.state) == ("r", 3, "finished")
    assert sent.model == one.runner.server.model
    one.leave()


def test_an_announcement_is_made_once_until_the_round_is_another(tmp_path: Path) -> None:
    one, outlet = Running(tmp_path, "abc").open(), Outlet()
    said = announcer(outlet)
    first = said.announcement(one.runner)
    assert said.announcement(one.runner) is first
    said.forget()
    again = said.announcement(one.runner)
    assert again is not first and again == first
    one.leave()


RESULT = RoundResult(
    run="r", round=3, state="closed", accuracy=0.75, loss=0.5, n_contributors=4, n_rejected=0, n_missing=0,
    bytes_up=100, bytes_down=200, seconds=7.5,
)  # fmt: skip


def test_a_result_goes_out_with_its_figures() -> None:
    outlet = Outlet()
    publish_result(outlet, RESULT)  # type: ignore[arg-type]  # stand-ins
    assert outlet.messages == [(RESULT.readable(), None)]
    assert outlet.metrics == {
        "accuracy": 0.75, "loss": 0.5, "bytes_up": 100, "bytes_down": 200, "seconds": 7.5,
        "contributors": 4, "round": 3,
    }  # fmt: skip


def test_what_was_not_evaluated_is_0_in_the_figures_and_a_failed_round_has_none() -> None:
    outlet = Outlet()
    publish_result(outlet, RESULT.model_copy(update={"accuracy": None, "loss": None}))  # type: ignore[arg-type]  # stand-ins
    assert (outlet.metrics["accuracy"], outlet.metrics["loss"]) == (0, 0)
    failed = Outlet()
    publish_result(failed, RESULT.model_copy(update={"state": "failed", "why": "nobody"}))  # type: ignore[arg-type]  # stand-ins
    assert failed.metrics == {} and len(failed.messages) == 1


def test_how_a_round_ended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    outlet = Outlet()
    said = announcer(outlet)
    said.result(RESULT.model_copy(update={"left_out": {"d": "it harms"}}))
    assert (
        "run=r round=3 closed accuracy=75.0% loss=0.5000 contributors=4 rejected=0 missing=0 left_out=1"
        in caplog.text
    )
    assert isinstance(outlet.messages[0][0], RoundResult)
    caplog.clear()
    said.result(RESULT.model_copy(update={"state": "failed", "why": "nobody came"}))
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "run=r round=3 failed: nobody came")
    ]
