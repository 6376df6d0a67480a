"""What a watcher reads of a run, line by line."""

from __future__ import annotations

from typing import Any

from apiary.wire import NodeId
from apiary.wire.messages import (
    Announcement,
    Ask,
    BlobRef,
    Bounds,
    CoordinatorStatus,
    Message,
    NodeStatus,
    Notice,
    Plan,
    Progress,
    RoundResult,
)
from apiary_cli.terminal.view import RunView

NODE = NodeId("pi-1")
REF = BlobRef(digest="a" * 64, bytes=1)


def take(view: RunView, message: Message, node: NodeId | None = None) -> list[str]:
    return view.take(message.kind, node, message)


def announcement(number: int = 1, **more: Any) -> Announcement:
    fields = {
        "run": "r",
        "round": number,
        "state": "open",
        "rounds": 5,
        "epoch": "e",
        "labels": ["x", "y"],
        "model": REF,
        "manifest": REF,
        "plan": Plan(),
        "bounds": Bounds(),
        "deadline_s": 60,
        "cohort_size": 3,
    }
    return Announcement.model_validate({**fields, **more})


def result(number: int, accuracy: float | None, **more: Any) -> RoundResult:
    fields = {"run": "r", "round": number, "state": "closed", "accuracy": accuracy, "loss": 0.5}
    fields |= {f"n_{key}": len(more.get(key, ())) for key in ("contributors", "rejected", "missing")}
    return RoundResult.model_validate({**fields, **more})


def test_a_node_is_greeted_once_and_missed_by_reason() -> None:
    view = RunView()
    ready = NodeStatus(state="ready", samples=30, labels={"cat": 10, "dog": 20})
    assert take(view, ready, NODE) == ["pi-1 is here: 30 samples (cat: 10, dog: 20)"]
    assert take(view, ready, NODE) == []
    assert take(view, NodeStatus(state="lost", why="connection lost"), NODE) == ["pi-1 lost: connection lost"]
    assert take(view, NodeStatus(state="paused"), NODE) == ["pi-1 paused"]
    assert take(view, ready, NODE) == []
    assert view.nodes[NODE].status == ready


def test_many_labels_are_a_number_and_none_is_said() -> None:
    view = RunView()
    many = NodeStatus(state="ready", samples=7, labels={f"l{i}": 1 for i in range(7)})
    assert take(view, many, NODE) == ["pi-1 is here: 7 samples (7 labels)"]
    assert take(view, NodeStatus(state="ready"), NodeId("b")) == ["b is here: 0 samples (no labels)"]


def test_a_round_is_told_when_it_opens_whichever_way_it_comes() -> None:
    view = RunView()
    assert take(view, announcement()) == ["round 1/5 opened for 3 nodes"]
    assert take(view, announcement(state="collecting")) == []
    assert take(view, Notice(announcement=announcement(2))) == ["round 2/5 opened for 3 nodes"]
    assert take(view, Notice()) == []
    assert view.run == "r" and not view.finished
    assert take(view, announcement(2, state="finished")) == []
    assert view.finished


def test_a_result_is_told_once_with_who_was_refused_and_who_is_missing() -> None:
    view = RunView()
    told = result(
        1,
        0.951,
        contributors={"a": {"samples": 1, "bytes": 1}},
        rejected={"b": "NaN"},
        missing={"c": "no update in time"},
        seconds=4.2,
    )
    assert take(view, told) == [
        "round 1 closed: accuracy 95.1%, loss 0.500, 1 updates, 4.2 s",
        "  b: update rejected: NaN",
        "  c: no update in time",
    ]
    assert take(view, told) == []


def test_a_failed_round_says_why() -> None:
    line = "round 2 failed: 1 of 3 nodes"
    assert take(RunView(), result(2, None, state="failed", why="1 of 3 nodes")) == [line]


def test_the_best_round_is_the_most_accurate_then_the_surest_then_the_first() -> None:
    view = RunView()
    assert view.best is None
    for number, accuracy, loss in ((1, 0.9, 0.3), (2, 0.9, 0.2), (3, 0.9, 0.2), (4, 0.8, 0.1)):
        take(view, result(number, accuracy, loss=loss))
    take(view, result(5, None, state="failed"))
    assert view.best is not None and view.best.round == 2


def test_what_a_node_is_at() -> None:
    view = RunView()
    take(view, Progress(run="r", round=1, epoch=2, epochs=3), NODE)
    assert view.nodes[NODE].doing == "?"
    take(view, NodeStatus(state="training"), NODE)
    assert view.nodes[NODE].doing == "epoch 2/3"
    take(view, NodeStatus(state="sending"), NODE)
    assert view.nodes[NODE].doing == "sending"
    take(view, NodeStatus(state="training"), NODE)
    assert view.nodes[NODE].doing == "training"


def test_whoever_watches_alone_hears_of_the_coordinator_and_of_a_runs_end() -> None:
    online, offline = (CoordinatorStatus(state=state, epoch="e") for state in ("online", "offline"))
    view = RunView(alone=True)
    assert take(view, online) == []
    assert take(view, offline) == ["the coordinator is offline"]
    assert take(view, offline) == []
    assert take(view, online) == ["the coordinator is online"]
    assert take(RunView(alone=True), offline) == ["the coordinator is offline"]
    assert take(view, announcement(2, state="finished")) == ["run r is over after round 2/5"]
    assert take(view, announcement(2, state="finished")) == []
    assert take(view, announcement(run="s")) == ["round 1/5 opened for 3 nodes"]
    assert take(view, announcement(run="s", state="finished")) == ["run s is over after round 1/5"]


def test_other_messages_say_nothing() -> None:
    view = RunView()
    assert take(view, CoordinatorStatus(state="online", epoch="e", run="r9")) == []
    assert view.run == "r9"
    assert take(view, CoordinatorStatus(state="offline", epoch="e")) == []
    assert view.run == "r9"
    assert take(view, Ask(), NODE) == []
    assert take(view, NodeStatus(state="ready")) == []
