"""What a coordinator settles before it starts: nothing wrong is journaled, no journal wedges it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.harness import FakeModelBuilder

from apiary.blobs import BlobStore
from apiary.errors import DataError, RequestRefused, SettingsError
from apiary.settings import Settings
from apiary.wire import Digest
from apiary_coordinator.journal import Journal, RunRow
from apiary_coordinator.resources import Storage
from apiary_coordinator.schedule.opening import check_to_stay, one_run
from apiary_coordinator.schedule.runbook import RunBook


class Place:
    """A coordinator's folders."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.journal = Journal(folder / "state")
        self.storage = Storage(self.journal, BlobStore(folder / "state" / "blobs"))

    def settings(self, **run: Any) -> Settings:
        where = {"state_dir": self.folder / "state", "runs_dir": self.folder / "runs"}
        return Settings.model_validate({"run": run, "coordinator": where})

    def one(self, *, name: str | None = None, new: bool = False, **run: Any) -> RunRow:
        settings = self.settings(**run)
        return one_run(settings, self.storage, lambda _, blobs: FakeModelBuilder(blobs), name=name, new=new)

    def states(self) -> dict[str, str]:
        return dict(self.journal.select("SELECT id, state FROM run ORDER BY rowid"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.journal.close()


@pytest.mark.parametrize(
    "wrong", [{"recipe": "x"}, {"strategy": "x"}, {"plan": {"codec": "x"}}, {"recipe_options": {"x": 1}}]
)
def test_nothing_is_journaled_of_a_run_with_a_wrong_name(place: Place, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"no .*'x'"):
        place.one(name="autumn", **wrong)
    with pytest.raises(SettingsError, match=r"no .*'x'"):
        check_to_stay(place.settings(**wrong), place.storage, new=False)
    assert place.states() == {}
    assert place.one(name="autumn").id == "autumn"


def test_a_wrong_publisher_is_refused_before_too(place: Place) -> None:
    settings = Settings.model_validate(
        {**place.settings().model_dump(), "publish": {"after_run": ["nowhere"]}}
    )
    with pytest.raises(SettingsError, match=r"publish.after_run: publishers: no 'nowhere'"):
        one_run(settings, place.storage, lambda _, b: FakeModelBuilder(b), name=None, new=False)
    assert place.states() == {}


def test_a_run_without_held_out_pictures_is_not_journaled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(self: FakeModelBuilder) -> tuple[str, ...]:
        raise DataError("no held-out pictures")

    monkeypatch.setattr(FakeModelBuilder, "labels", labels)
    with pytest.raises(DataError):
        place.one()
    assert place.states() == {}


@pytest.mark.parametrize("stored", ['{"recipe": "of_another_time"}', '{"colour": "red"}'])
def test_an_unfinished_run_that_cannot_go_on_says_how_to_leave_it(place: Place, stored: str) -> None:
    place.journal.open_run("old", 0.0, stored)
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"run old is unfinished, .* apiary coordinator --new$"):
            place.one()
    row = place.one(name="next", new=True)
    assert (row.id, place.states()) == ("next", {"old": "abandoned", "next": "active"})


def test_the_name_of_a_run_that_failed_before_its_first_round_is_free_again(place: Place) -> None:
    place.one(name="autumn")
    place.journal.end_run("autumn", "failed", "no export")
    assert place.one(name="autumn", rounds=7).state == "active"
    assert place.states() == {"autumn": "active"}


def test_the_name_of_a_run_with_a_round_is_not(place: Place) -> None:
    place.one(name="autumn")
    place.journal.open_round("autumn", 1, {})
    place.journal.close_round("autumn", 1, {"state": "closed"}, Digest("0" * 64), None)
    for state in ("failed", "finished", "abandoned"):
        place.journal.end_run("autumn", state, "over")
        with pytest.raises(SettingsError, match="there is a run 'autumn' already"):
            place.one(name="autumn")
        with pytest.raises(RequestRefused, match="there is a run 'autumn' already"):
            RunBook(place.journal).request("autumn", 0.0, "{}", why="", request=None)
    (place.folder / "runs" / "winter").mkdir(parents=True)
    with pytest.raises(SettingsError, match="there is a run 'winter' already"):
        place.one(name="winter")


def test_an_interrupted_run_is_taken_up_and_left_for_another_name(place: Place) -> None:
    assert place.one(name="autumn", rounds=3).id == "autumn"
    assert place.one(rounds=5).id == "autumn"
    assert place.one(name="winter").id == "winter"
    assert place.states() == {"autumn": "abandoned", "winter": "active"}
    check_to_stay(place.settings(), place.storage, new=True)
    assert place.states() == {"autumn": "abandoned", "winter": "abandoned"}
