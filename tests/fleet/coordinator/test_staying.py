"""A coordinator that stays up: runs one after another, asked for or by the timetable, whatever dies."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.fleet.harness import TICK_S, FakeModelBuilder, Fleet, MakeFleet

from apiary.bus.bus import Received
from apiary.errors import SettingsError, StoreError
from apiary.wire.messages import Announcement
from apiary.wire.topics import TopicKind
from apiary_coordinator.journal import Journal
from apiary_coordinator.schedule.runbook import MAX_WAITING
from apiary_edge.training.session import SessionState


def listed(fleet: Fleet) -> list[dict[str, Any]]:
    return fleet.ask("run.list").result["runs"]  # type: ignore[index, call-overload, return-value]  # JSON


def state_of(fleet: Fleet) -> dict[str, str]:
    """Every run's state, from the journal."""
    assert fleet._journal is not None
    return dict(fleet._journal.select("SELECT id, state FROM run ORDER BY rowid"))


def stage(fleet: Fleet) -> str | None:
    assert fleet.coordinator is not None
    return fleet.hosted.stage if fleet.coordinator.host.current is not None else None


@pytest.fixture
def staying(make_fleet: MakeFleet) -> Callable[..., Fleet]:
    return lambda nodes=3, **more: make_fleet(nodes, **{"stay": True, "rounds": 2, **more})


def test_runs_one_after_another_in_the_order_they_were_asked_for(staying: Callable[..., Fleet]) -> None:
    fleet = staying()
    for _ in range(50):
        fleet.turn()
    assert (stage(fleet), listed(fleet)) == (None, [])
    first = fleet.ask("run.start", name="first")
    assert first.result == {"run": "first", "ahead": 0}
    fleet.until(lambda: stage(fleet) == "round")
    assert fleet.ask("run.start", name="second", settings={"rounds": 1}).result == {
        "run": "second",
        "ahead": 1,
    }
    assert fleet.ask("run.start", name="third").result == {"run": "third", "ahead": 2}
    fleet.until(lambda: set(state_of(fleet).values()) == {"finished"})
    found = listed(fleet)
    assert [(r["run"], r["rounds"], r["why"]) for r in found] == [
        ("third", 2, "by operator anna"),
        ("second", 1, "by operator anna"),
        ("first", 2, "by operator anna"),
    ]
    assert found[0]["created"] >= found[1]["ended"] >= found[1]["created"] >= found[2]["ended"]
    assert all((fleet.folder / "runs" / r["run"] / "summary.json").exists() for r in found)
    shown: Any = fleet.ask("run.show", name="second").result
    assert [r["round"] for r in shown["results"]] == [1]
    assert shown["results"][0]["contributors"] == 3 and shown["settings"]["rounds"] == 1


def test_between_runs_nodes_are_idle_and_the_last_word_of_the_last_run_stays(
    staying: Callable[..., Fleet],
) -> None:
    fleet = staying()
    fleet.ask("run.start", name="one")
    fleet.until(lambda: state_of(fleet) == {"one": "finished"} and stage(fleet) is None)
    topic = fleet.settings().topics.build(TopicKind.ROUND_CURRENT)
    disturbances: list[Callable[[], None]] = [lambda: None, fleet.broker.forget]
    for disturb in disturbances:
        disturb()
        for _ in range(50):
            fleet.turn()
        bus = fleet.broker.bus("viewer", None)
        bus.subscribe(topic)
        heard: list[Any] = []
        fleet.until(lambda heard=heard, bus=bus: heard.extend(bus.poll(0)) or len(heard) > 1, 60)  # type: ignore[misc]  # a lambda's default
        (told,) = [e for e in heard if isinstance(e, Received)]
        assert Announcement.decode(told.payload, who="test").state == "finished"
        bus.close()
    assert {n.session.state.value for n in fleet.nodes.values()} == {"idle"}
    status = fleet.settings().topics.build(TopicKind.COORDINATOR_STATUS)
    assert "run" not in json.loads(fleet.broker.retained[status])


def test_a_run_gives_the_same_bits_whatever_ran_before(
    staying: Callable[..., Fleet], make_fleet: MakeFleet
) -> None:
    alone = make_fleet(3, rounds=2).run()["model_sha256"]
    fleet = staying()
    for name in ("one", "two"):
        fleet.ask("run.start", name=name)
    fleet.until(lambda: list(state_of(fleet).values()) == ["finished"] * 2)
    for name in ("one", "two"):
        assert f'"model_sha256": "{alone}"' in (fleet.folder / "runs" / name / "summary.json").read_text()


@pytest.mark.parametrize("seed", range(3))
def test_killing_the_coordinator_at_any_time_loses_no_run_and_runs_none_twice(
    staying: Callable[..., Fleet], make_fleet: MakeFleet, seed: int
) -> None:
    alone = make_fleet(3, rounds=2).run()["model_sha256"]
    fleet = staying()
    names = ["one", "two", "three"]
    for name in names:
        fleet.ask("run.start", name=name)
    chance = random.Random(seed)
    kills = 0
    while set(state_of(fleet).values()) != {"finished"}:
        for _ in range(chance.randrange(1, 60)):
            fleet.turn()
        fleet.kill_coordinator()
        kills += 1
        assert kills < 200
        for _ in range(chance.randrange(1, 30)):
            fleet.turn()
        fleet.start_coordinator()
    assert kills >= 5
    assert list(state_of(fleet)) == names
    for name in names:
        assert f'"model_sha256": "{alone}"' in (fleet.folder / "runs" / name / "summary.json").read_text()


def test_a_request_that_comes_again_after_a_restart_is_no_second_run(staying: Callable[..., Fleet]) -> None:
    fleet = staying()
    first = fleet.ask("run.start", id="same")
    fleet.kill_coordinator()
    fleet.start_coordinator()
    again = fleet.ask("run.start", id="same")
    assert again.result["run"] == first.result["run"]  # type: ignore[index, call-overload]  # JSON
    assert len(state_of(fleet)) == 1


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"name": "../etc"}, "the run's name '../etc' cannot stand in a topic"),
        ({"settings": {"rounds": 0}}, "run.rounds is '0': Input should be greater than or equal to 1"),
        ({"settings": {"colour": "red"}}, "run.colour is 'red': Extra inputs are not permitted"),
        ({"settings": {"plan.epoch": 3}}, "run.plan.epoch is '3': Extra inputs are not permitted"),
        ({"settings": {"rounds.x": 3}}, "run.rounds.x: rounds holds one value, not several"),
        ({"settings": {"recipe": "os"}}, "run.recipe: recipes: no 'os'. There are: "),
        (
            {"settings": {"strategy": "fedavgg"}},
            "run.strategy: strategies: no 'fedavgg'; did you mean 'fedavg'?",
        ),
        ({"settings": {"plan.codec": "f17"}}, "run.plan.codec: codecs: no 'f17'; did you mean 'f16'?"),
        ({"settings": {"only": ["x"]}}, "run.only is "),
        ({"settings": {"recipe_options.size": 9999}}, "run.recipe_options: recipe edge_cnn: size is 9999: "),
        (
            {"settings": {"strategy_options.mu": 1}},
            "run.strategy_options of plain, mean, fedavg: no option 'mu'",
        ),
        (
            {"settings": {"strategy": "fedprox", "strategy_options.mu": -1}},
            "run.strategy_options.mu is -1, expected a number over 0",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    staying: Callable[..., Fleet], args: dict[str, Any], why: str
) -> None:
    answer = staying().ask("run.start", **args)
    assert answer.state == "refused" and (answer.why or "").startswith(why), answer.why


def test_a_publisher_that_is_none_is_said_at_the_start(staying: Callable[..., Fleet]) -> None:
    with pytest.raises(SettingsError, match="publishers: no 'directry'; did you mean 'directory'"):
        staying(more={"publish": {"after_run": ["directry"]}})


def test_names_are_used_once_and_the_queue_is_bounded(staying: Callable[..., Fleet]) -> None:
    fleet = staying(nodes=1, min_nodes=5)
    for i in range(MAX_WAITING + 1):
        assert fleet.ask("run.start", name=f"r{i}").state == "done"
        fleet.until(lambda: stage(fleet) == "waiting")
    assert fleet.ask("run.start", name="r0").why == "20 runs are waiting; stop one of them first"
    assert fleet.ask("run.stop", name="r7").result == {"run": "r7", "state": "withdrawn"}
    assert next(run for run in listed(fleet) if run["run"] == "r7")["ended"] is not None
    assert fleet.ask("run.start", name="r0").why == "there is a run 'r0' already: give another name"
    assert fleet.ask("run.start", name="new").state == "done"


def test_a_stopped_run_ends_with_its_best_model_and_the_next_one_begins(
    staying: Callable[..., Fleet],
) -> None:
    fleet = staying(rounds=50)
    fleet.ask("run.start", name="long")
    fleet.ask("run.start", name="next", settings={"rounds": 1})
    fleet.until(lambda: stage(fleet) is not None and fleet.hosted.history.next_number == 3)
    found = fleet.hosted.history.best
    assert found is not None
    best = found.round
    assert fleet.ask("run.stop").result == {"run": "long", "state": "stopping", "best": best}
    fleet.until(lambda: state_of(fleet) == {"long": "stopped", "next": "finished"})
    summary = (fleet.folder / "runs" / "long" / "summary.json").read_text()
    assert '"stop": "stopped by operator anna"' in summary and '"best_round": ' in summary
    # Every node is free again: nothing of the abandoned round is left behind.
    assert all(not node._stores.outbox.waiting() for node in fleet.nodes.values())


@pytest.mark.parametrize("when", ["building", "waiting", "round"])
def test_a_run_stopped_before_its_first_model_just_ends(staying: Callable[..., Fleet], when: str) -> None:
    fleet = staying(nodes=3, min_nodes=4 if when == "waiting" else 3)
    fleet.ask("run.start", name="early")
    if when != "building":
        fleet.until(lambda: stage(fleet) == when)
    assert fleet.ask("run.stop").result["best"] is None  # type: ignore[index,call-overload]  # JSON
    fleet.until(lambda: state_of(fleet) == {"early": "stopped"} and stage(fleet) is None)
    assert fleet.ask("run.stop").why == "no run is under way"
    assert fleet.ask("run.stop", name="early").why == (
        "run 'early' is over already: stopped, stopped by operator anna"
    )
    assert fleet.ask("run.stop", name="other").why == "no run 'other'; there are: apiary run list"


def test_nodes_say_that_their_training_was_ended_and_train_the_next_run(
    staying: Callable[..., Fleet], caplog: pytest.LogCaptureFixture
) -> None:
    fleet = staying(rounds=5)
    for training in fleet.trainings.values():
        training.seconds = 500
    fleet.ask("run.start", name="long")
    fleet.ask("run.start", name="next", settings={"rounds": 1})
    fleet.until(lambda: all(node.session.state is SessionState.TRAINING for node in fleet.nodes.values()))
    with caplog.at_level(logging.INFO, logger="apiary_edge"):
        fleet.ask("run.stop", name="long")
        for training in fleet.trainings.values():
            training.seconds = 1
        fleet.until(lambda: state_of(fleet) == {"long": "stopped", "next": "finished"})
    ended = [line for line in caplog.messages if line.endswith("round=1 training ended before it was done")]
    assert sorted(ended) == sorted(f"node={n} round=1 training ended before it was done" for n in fleet.nodes)


def test_a_stopped_round_frees_its_nodes_before_the_run_is_finished(
    staying: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finishing takes as long as its publishers do; nobody shall train for nothing so long."""
    fleet = staying(rounds=5)
    fleet.ask("run.start", name="long")
    fleet.until(lambda: stage(fleet) is not None and fleet.hosted.history.next_number == 2)
    for training in fleet.trainings.values():
        training.seconds = 5000
    fleet.until(lambda: all(node.session.state is SessionState.TRAINING for node in fleet.nodes.values()))
    freed: list[bool] = []

    def finish(self: FakeModelBuilder, *args: Any) -> dict[str, Any]:
        for _ in range(20):
            fleet.broker.now += TICK_S
            for node in fleet.nodes.values():
                node.step(0)
        freed.append(all(node.session.state is SessionState.IDLE for node in fleet.nodes.values()))
        return {}

    monkeypatch.setattr(FakeModelBuilder, "finish", finish)
    fleet.ask("run.stop", name="long")
    fleet.until(lambda: state_of(fleet) == {"long": "stopped"})
    assert freed == [True]


def test_a_stop_survives_the_coordinators_death(staying: Callable[..., Fleet]) -> None:
    fleet = staying(rounds=50)
    fleet.ask("run.start", name="long")
    fleet.until(lambda: stage(fleet) is not None and fleet.hosted.history.next_number == 2)
    fleet.until(lambda: stage(fleet) == "round")
    fleet.hosted.stop("stopped by operator anna")
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.until(lambda: state_of(fleet) == {"long": "stopped"})


def test_a_run_that_cannot_be_built_is_told_and_the_next_one_begins(
    staying: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fleet.harness import FakeModelBuilder

    from apiary.errors import DataError

    fleet = staying()
    build, failing = FakeModelBuilder.build, [True]

    def fail_once(self: FakeModelBuilder) -> Any:
        if failing.pop() if failing else False:
            raise DataError("the pictures are gone")
        return build(self)

    monkeypatch.setattr(FakeModelBuilder, "build", fail_once)
    fleet.ask("run.start", name="bad")
    fleet.ask("run.start", name="good")
    fleet.until(lambda: state_of(fleet) == {"bad": "failed", "good": "finished"})
    assert listed(fleet)[1]["stop"] == "the pictures are gone"


def test_a_run_without_a_model_fails_and_the_coordinator_stays(staying: Callable[..., Fleet]) -> None:
    fleet = staying(deadline_s=5, max_failed_rounds=1)
    for training in fleet.trainings.values():
        training.seconds = 10_000
    fleet.ask("run.start", name="slow")
    fleet.until(lambda: state_of(fleet) == {"slow": "failed"})
    for training in fleet.trainings.values():
        training.seconds = 1
    fleet.ask("run.start", name="quick")
    fleet.until(lambda: state_of(fleet)["quick"] == "finished")


def test_new_samples_begin_a_run(staying: Callable[..., Fleet]) -> None:
    fleet = staying(more={"schedule": {"new_samples": 100, "min_pause_s": 30}})
    fleet.until(lambda: len(state_of(fleet)) == 0 and fleet.broker.now > 20)
    fleet.start_node("pi-03", samples=60)  # the folder is shared: all four have 60 at their next count
    (run,) = fleet.until(lambda: state_of(fleet))
    fleet.until(lambda: state_of(fleet)[run] == "finished")
    assert listed(fleet)[0]["why"].endswith(" new samples")
    fleet.until(lambda: fleet.broker.now > 300)
    assert len(state_of(fleet)) == 1


def test_every_so_often_a_run_begins_and_a_restart_does_not_bring_it_forward(
    staying: Callable[..., Fleet],
) -> None:
    fleet = staying(rounds=1, more={"schedule": {"every_hours": 0.1, "min_pause_s": 0}})
    fleet.until(lambda: list(state_of(fleet).values()) == ["finished"])
    fleet.kill_coordinator()
    fleet.start_coordinator()
    for _ in range(200):
        fleet.turn()
    assert len(state_of(fleet)) == 1
    fleet.until(lambda: list(state_of(fleet).values()) == ["finished"] * 2)
    first, second = reversed(listed(fleet))
    assert second["created"] - first["created"] == pytest.approx(360, abs=10)


def test_blobs_of_old_runs_are_removed(staying: Callable[..., Fleet]) -> None:
    fleet = staying(rounds=3)
    counts = []
    for i in range(5):
        fleet.ask("run.start", name=f"r{i}", settings={"seed": i})
        fleet.until(lambda i=i: state_of(fleet)[f"r{i}"] == "finished")  # type: ignore[misc]  # a lambda's default
        counts.append(len(list((fleet.folder / "coordinator" / "blobs").iterdir())))
    assert counts[4] <= counts[2]


def test_a_coordinator_for_one_run_refuses_another_and_can_be_stopped(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, rounds=50)
    assert (fleet.ask("run.start").why or "").startswith("this coordinator was started for one run")
    fleet.until(lambda: stage(fleet) is not None and fleet.hosted.history.next_number == 3)
    assert fleet.ask("run.stop").state == "done"
    assert fleet.run()["stop"] == "stopped by operator anna"


def test_a_journal_that_cannot_commit_for_a_while_loses_no_run_and_begins_none_twice(
    staying: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = staying(rounds=1)
    names = [f"r{i}" for i in range(4)]
    for name in names:
        fleet.ask("run.start", name=name)
    really, chance = Journal.commit, random.Random(4)
    began: list[str] = []

    def sometimes(self: Journal, *statements: tuple[str, tuple[Any, ...]]) -> None:
        if chance.random() < 0.4:
            raise StoreError("the journal refused a commit: disk I/O error")
        began.extend(values[1] for sql, values in statements if "state = 'active'" in sql)
        really(self, *statements)

    monkeypatch.setattr(Journal, "commit", sometimes)
    fleet.until(lambda: list(state_of(fleet).values()) == ["finished"] * 4)
    assert began == names[1:]  # the first began before the disk went bad


def test_a_time_that_passes_while_the_coordinator_is_down_is_made_up_for(
    staying: Callable[..., Fleet],
) -> None:
    # The fleet's clock begins at 0: midnight of 1970-01-01 in UTC.
    schedule = {"at": ["00:10"], "timezone": "UTC", "min_pause_s": 0}
    fleet = staying(rounds=1, more={"schedule": schedule})
    for _ in range(50):
        fleet.turn()
    fleet.kill_coordinator()
    fleet.broker.now = 1800.0
    fleet.start_coordinator()
    (run,) = fleet.until(lambda: state_of(fleet))
    fleet.until(lambda: state_of(fleet)[run] == "finished")
    assert listed(fleet)[0]["why"] == "at 00:10"
    for _ in range(500):
        fleet.turn()
    assert len(state_of(fleet)) == 1


def test_a_run_without_held_out_pictures_is_refused_at_once(
    staying: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fleet.harness import FakeModelBuilder

    from apiary.errors import DataError

    def labels(self: FakeModelBuilder) -> tuple[str, ...]:
        raise DataError("no held-out pictures")

    fleet = staying()
    monkeypatch.setattr(FakeModelBuilder, "labels", labels)
    answer = fleet.ask("run.start", name="x")
    assert (answer.state, answer.why, state_of(fleet)) == ("refused", "no held-out pictures", {})
