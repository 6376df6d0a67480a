"""A run begins with a model that is there; the fleet predicts with the best there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.fleet.harness import Fleet, MakeFleet

from apiary.errors import SettingsError
from apiary.tensors import Weights
from apiary.wire.messages import Announcement, ModelManifest
from apiary.wire.topics import TopicKind

KILLED = (3, 9, 14, 22, 31, 44, 60)
"""Seconds after the second run was requested."""


@pytest.fixture
def staying(make_fleet: MakeFleet) -> Callable[..., Fleet]:
    return lambda **more: make_fleet(2, **{"stay": True, "rounds": 3, **more})


def do(fleet: Fleet, name: str, **settings: Any) -> dict[str, Any]:
    """One run to its end: its summary."""
    answer = fleet.ask("run.start", name=name, settings=settings)
    assert answer.state == "done", answer
    finish(fleet, name)
    found: dict[str, Any] = json.loads((fleet.folder / "runs" / name / "summary.json").read_text())
    return found


def finish(fleet: Fleet, name: str) -> None:
    def over() -> bool:
        row = fleet.journal.run(name)
        return row is not None and row.state == "finished" and fleet.coordinator is not None

    fleet.until(over)
    fleet.until(lambda: fleet.coordinator is not None and fleet.coordinator.host.current is None)


def results(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    return list(fleet.journal.results(name))


def current(fleet: Fleet) -> ModelManifest:
    topic = fleet.settings().topics.build(TopicKind.MODEL_CURRENT)
    return ModelManifest.decode(fleet.broker.retained[topic], who="the coordinator")


def initial_of(fleet: Fleet, name: str) -> str:
    row = fleet.journal.run(name)
    assert row is not None and row.exported is not None
    return str(json.loads(row.exported)["initial"]["digest"])


def best_of(fleet: Fleet, name: str) -> dict[str, Any]:
    return max(results(fleet, name), key=lambda r: (r["accuracy"], -r["loss"]))


class InTurn:
    """Of the model that a run begins with, then of each round's; the last one stays."""

    def __init__(self, *values: float):
        self._values = list(values)

    def __call__(self, weights: Weights) -> float:
        return self._values.pop(0) if len(self._values) > 1 else self._values[0]


def test_the_latest_is_the_best_checkpoint_of_the_run_before(staying: Callable[..., Fleet]) -> None:
    fleet = staying()
    first = do(fleet, "first")
    assert "ancestor" not in first
    best = best_of(fleet, "first")
    summary = do(fleet, "second", start_from="latest")
    assert initial_of(fleet, "second") == best["model"]
    ancestor = summary["ancestor"]
    assert (ancestor["run"], ancestor["round"]) == ("first", best["round"])
    assert ancestor["accuracy"] == ancestor["accuracy_here"] == best["accuracy"]
    history = (fleet.folder / "runs" / "second" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[0])["ancestor"] == ancestor


def test_a_run_is_named_or_from_scratch_and_what_does_not_fit_is_refused_before_it_is_journaled(
    staying: Callable[..., Fleet],
) -> None:
    fleet = staying(rounds=1)
    do(fleet, "first")
    do(fleet, "second", start_from="first")
    assert initial_of(fleet, "second") == results(fleet, "first")[0]["model"]
    scratch = initial_of(fleet, "first")
    do(fleet, "third", start_from="scratch")
    assert initial_of(fleet, "third") == scratch
    before = [row.id for row in fleet.journal.runs("1")]
    for i, (settings, why) in enumerate(
        (
            ({"start_from": "frist"}, "no run 'frist' with a model; runs with a model: third, second, first"),
            (
                {"start_from": "first", "recipe": "char_rnn"},
                "round 1 of run first is of the recipe edge_cnn, this run's is char_rnn",
            ),
            (
                {"start_from": "latest", "recipe_options": {"size": 64}},
                "option size = 96, this run's is 64. To begin anew: run.start_from = 'scratch'",
            ),
            ({"start_from": "gone.keras"}, "gone.keras: No such file or directory; expected a .keras file"),
        )
    ):
        answer = fleet.ask("run.start", name="never", settings=settings, id=f"never-{i}")
        assert answer.state == "refused" and why in (answer.why or ""), answer
    assert [row.id for row in fleet.journal.runs("1")] == before


def test_without_a_run_the_latest_begins_from_scratch(staying: Callable[..., Fleet]) -> None:
    assert "ancestor" not in do(staying(), "first", start_from="latest")


def test_killed_anywhere_it_ends_with_the_same_bits(staying: Callable[..., Fleet]) -> None:
    def model(kills: Iterator[float]) -> str:
        fleet = staying()
        do(fleet, "first")
        assert fleet.ask("run.start", name="second", settings={"start_from": "latest"}).state == "done"
        began = fleet.broker.now
        for after in kills:
            while fleet.broker.now < began + after:
                fleet.turn()
            fleet.kill_coordinator()
            fleet.start_coordinator()
        finish(fleet, "second")
        return str(results(fleet, "second")[-1]["model"])

    undisturbed = model(iter(()))
    assert model(iter(KILLED)) == undisturbed


def test_a_run_that_ended_below_its_start_is_passed_over(staying: Callable[..., Fleet]) -> None:
    fleet = staying(rounds=1, accuracy=InTurn(0.1, 0.6, 0.6, 0.4, 0.6, 0.7, 0.7, 0.7))
    do(fleet, "good")
    assert do(fleet, "bad", start_from="latest")["ancestor"]["run"] == "good"
    assert do(fleet, "next", start_from="latest")["ancestor"]["run"] == "good"
    assert do(fleet, "last", start_from="latest")["ancestor"]["run"] == "next"


def test_scheduled_runs_go_on_and_those_by_hand_do_not(staying: Callable[..., Fleet]) -> None:
    accuracy = InTurn(0.1, *(i / 100 for i in range(20, 90) for _ in "ab"))
    fleet = staying(rounds=1, accuracy=accuracy, more={"schedule": {"every_hours": 0.1}})
    do(fleet, "by-hand")
    began = len(fleet.journal.runs("1"))
    fleet.until(lambda: len(fleet.journal.runs("state = 'finished'")) >= began + 2, seconds=3600)
    newest, before, *_ = fleet.journal.runs("state = 'finished' ORDER BY rowid DESC")
    assert newest.exported is not None and before.exported is not None
    assert json.loads(newest.exported)["ancestor"]["run"] == before.id
    assert json.loads(before.exported)["ancestor"]["run"] == "by-hand"


def test_a_schedule_whose_recipe_changed_begins_from_scratch(staying: Callable[..., Fleet]) -> None:
    fleet = staying(rounds=1)
    do(fleet, "before")
    fleet.kill_coordinator()
    fleet.run_settings["recipe_options"] = {"size": 64}
    fleet.more["schedule"] = {"every_hours": 0.1}
    fleet.start_coordinator()
    fleet.until(lambda: len(fleet.journal.runs("state = 'finished'")) == 2, seconds=3600)
    (newest,) = fleet.journal.runs("state = 'finished' ORDER BY rowid DESC LIMIT 1")
    assert newest.exported is not None and json.loads(newest.exported)["ancestor"] is None


def test_what_the_fleet_predicts_with_is_never_replaced_by_a_worse_model(
    staying: Callable[..., Fleet],
) -> None:
    """The model in place while runs go on: the accuracy of each that the coordinator published."""
    fleet = staying(rounds=3, accuracy=InTurn(0.1, 0.5, 0.7, 0.6, 0.1, 0.2, 0.65, 0.8))
    seen: list[tuple[str, int]] = []

    def watch() -> None:
        topic = fleet.settings().topics.build(TopicKind.MODEL_CURRENT)
        if topic in fleet.broker.retained and (
            not seen or seen[-1] != (current(fleet).run, current(fleet).round)
        ):
            seen.append((current(fleet).run, current(fleet).round))

    for name in ("first", "second"):
        fleet.ask("run.start", name=name)
        while (row := fleet.journal.run(name)) is None or row.state != "finished":
            fleet.turn()
            watch()
    # .5, .7, .6, then .2, .65 and .8 of a run from scratch.
    assert seen == [("first", 1), ("first", 2), ("second", 3)]


def test_after_a_restart_the_model_in_place_is_the_same(staying: Callable[..., Fleet]) -> None:
    fleet = staying(rounds=3, accuracy=InTurn(0.1, 0.7, 0.5, 0.6))
    do(fleet, "first")
    before = current(fleet)
    assert before.model.digest == best_of(fleet, "first")["model"]
    fleet.kill_coordinator()
    fleet.broker.forget()
    fleet.start_coordinator()
    fleet.until(lambda: fleet.settings().topics.build(TopicKind.MODEL_CURRENT) in fleet.broker.retained)
    assert current(fleet) == before


def test_the_announced_model_of_the_first_round_is_the_ancestors(staying: Callable[..., Fleet]) -> None:
    fleet = staying(rounds=1)
    do(fleet, "first")
    fleet.ask("run.start", name="second", settings={"start_from": "latest"})
    fleet.until(lambda: fleet.runner is not None)
    topic = fleet.settings().topics.build(TopicKind.ROUND_CURRENT)
    announced = Announcement.decode(fleet.broker.retained[topic], who="the coordinator")
    assert announced.model.digest == best_of(fleet, "first")["model"]


def test_one_run_refuses_what_it_cannot_begin_with_before_anything_is_journaled(
    make_fleet: MakeFleet,
) -> None:
    from tests.fleet.harness import FakeModelBuilder

    from apiary.blobs import BlobStore
    from apiary_coordinator.resources import Storage
    from apiary_coordinator.schedule.opening import one_run

    fleet = make_fleet(2, stay=True)
    settings = fleet.settings()
    storage = Storage(fleet.journal, BlobStore(settings.coordinator.state_dir / "blobs"))
    run = settings.run.model_copy(update={"start_from": "nowhere"})
    with pytest.raises(SettingsError, match="no run 'nowhere' with a model; runs with a model: none"):
        one_run(
            settings.model_copy(update={"run": run}),
            storage,
            lambda _, blobs: FakeModelBuilder(blobs),
            name="one",
            new=False,
        )
    assert fleet.journal.run("one") is None
