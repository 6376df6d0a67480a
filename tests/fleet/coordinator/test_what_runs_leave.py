"""A coordinator that stays up for years: what runs leave is bounded, the newest model is to be had."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet

from apiary.bus.bus import Received
from apiary.wire import NodeId
from apiary.wire.chunks import count
from apiary.wire.messages import ModelManifest, Want
from apiary.wire.topics import TopicKind
from apiary_coordinator.journal import Journal


@pytest.fixture
def staying(make_fleet: MakeFleet) -> Callable[..., Fleet]:
    return lambda nodes=2, **more: make_fleet(nodes, **{"stay": True, "rounds": 1, **more})


def journal_of(fleet: Fleet) -> Journal:
    assert fleet._journal is not None
    return fleet._journal


def do(fleet: Fleet, run: str, **settings: Any) -> None:
    """Ask for a run and wait for its end."""
    assert fleet.ask("run.start", name=run, settings=settings).state == "done"
    fleet.until(lambda: _state(fleet, run) not in ("waiting", "active"))
    fleet.until(lambda: fleet.coordinator and fleet.coordinator.host.current is None)


def _state(fleet: Fleet, run: str) -> str:
    row = journal_of(fleet).run(run)
    return row.state if row is not None else "gone"


def rows(fleet: Fleet, table: str) -> set[str]:
    return {row[0] for row in journal_of(fleet).select(f"SELECT run FROM {table}")}  # noqa: S608


def test_old_runs_leave_the_journal_and_their_folders(staying: Callable[..., Fleet]) -> None:
    fleet = staying(more={"coordinator": {"keep_runs": 3}})
    for i in range(1, 7):
        do(fleet, f"run-{i}")
    # What is old is looked for when a run begins: run-6 found five that were over.
    assert [_state(fleet, f"run-{i}") for i in range(1, 7)] == ["gone"] * 2 + ["finished"] * 4
    assert {p.name for p in (fleet.folder / "runs").iterdir()} == {f"run-{i}" for i in range(3, 7)}
    assert rows(fleet, "round") == {f"run-{i}" for i in range(3, 7)}
    assert rows(fleet, "accepted") == {"run-5", "run-6"}
    told: Any = fleet.ask("run.show", name="run-3").result
    assert told["rounds"] == 1 and told["results"][0]["contributors"] == 2
    (entry,) = journal_of(fleet).results("run-3")
    assert "shares" not in entry and entry["n_contributors"] == 2


def test_a_night_of_failing_runs_takes_no_good_one_with_it(staying: Callable[..., Fleet]) -> None:
    fleet = staying(more={"coordinator": {"keep_runs": 2}})
    do(fleet, "good")
    for training in fleet.trainings.values():
        training.seconds = 1000
    for i in range(1, 6):
        do(fleet, f"bad-{i}", deadline_s=1, max_failed_rounds=1)
    assert [_state(fleet, f"bad-{i}") for i in range(1, 6)] == ["gone"] * 2 + ["failed"] * 3
    assert _state(fleet, "good") == "finished" and (fleet.folder / "runs" / "good").is_dir()


def test_all_runs_stay_where_that_is_wanted(staying: Callable[..., Fleet]) -> None:
    fleet = staying(more={"coordinator": {"keep_runs": 0}})
    for i in range(1, 5):
        do(fleet, f"run-{i}")
    assert {_state(fleet, f"run-{i}") for i in range(1, 5)} == {"finished"}
    assert len(list((fleet.folder / "runs").iterdir())) == 4


def wanted(fleet: Fleet, digest: str, size: int) -> int:
    """How many chunks come of a blob that a node wants."""
    topics = fleet.settings().topics
    bus = fleet.broker.bus("predicting", None)
    bus.subscribe(topics.pattern(TopicKind.CHUNK_DOWN))
    for _ in range(5):
        fleet.turn()
        bus.poll(0)
    want = Want(digest=digest, missing=[(0, count(size))])
    bus.publish(topics.build(TopicKind.NODE_WANT, node=NodeId("pi-09")), want.encode())
    for _ in range(30):
        fleet.turn()
    found = [e for e in bus.poll(0) if isinstance(e, Received)]
    bus.close()
    return len({e.topic for e in found})


@pytest.mark.parametrize("bad", [0, 3], ids=["after a restart", "after runs without a model"])
def test_the_newest_model_is_said_and_lent(staying: Callable[..., Fleet], bad: int) -> None:
    """Also where the broker forgot everything while the coordinator was down."""
    fleet = staying()
    do(fleet, "good")
    topic = fleet.settings().topics.build(TopicKind.MODEL_CURRENT)
    before = fleet.broker.retained[topic]
    for training in fleet.trainings.values():
        training.seconds = 1000
    for i in range(bad):
        do(fleet, f"bad-{i}", deadline_s=1, max_failed_rounds=1)
    fleet.kill_coordinator()
    fleet.broker.forget()
    fleet.start_coordinator()
    for _ in range(20):
        fleet.turn()
    model = ModelManifest.decode(fleet.broker.retained[topic], who="the coordinator")
    assert model == ModelManifest.decode(before, who="the coordinator")
    assert model.trainer is not None
    for ref in (model.model, model.trainer):
        assert wanted(fleet, ref.digest, ref.bytes) == count(ref.bytes)
    last = json.loads(fleet.broker.retained[fleet.settings().topics.build(TopicKind.ROUND_LAST)])
    assert (last["run"], last["n_contributors"]) == ("good", 2)
    metric = fleet.settings().topics.build(TopicKind.METRIC, metric="contributors")
    assert fleet.broker.retained[metric] == b"2"
