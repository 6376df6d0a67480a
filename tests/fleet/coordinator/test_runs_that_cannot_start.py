"""A run whose model cannot be built, or whose held-out pictures are others than when it began."""

from __future__ import annotations

import logging

import pytest
from tests.fleet.harness import FakeModelBuilder, MakeFleet

from apiary.errors import ApiaryError, DataError, ModelError
from apiary.learn.metrics import Evaluation
from apiary.tensors import Weights
from apiary_coordinator.model.builder import ExportedModel


def cannot_build(self: FakeModelBuilder) -> ExportedModel:
    raise ModelError("the exported trainer differs from Keras")


def cannot_evaluate(self: FakeModelBuilder, exported: ExportedModel, weights: Weights) -> Evaluation:
    raise DataError("the held-out pictures have the labels ['x'], the model ['a', 'b']")


def test_one_that_never_began_is_over_and_the_next_start_begins_another(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(FakeModelBuilder, "build", cannot_build)
        with pytest.raises(ModelError, match=r"^the exported trainer differs from Keras$"):
            make_fleet(2, rounds=1).run(seconds=5)
    fleet = make_fleet(2, rounds=1)
    with monkeypatch.context() as patched:
        patched.setattr(FakeModelBuilder, "build", cannot_build)
        fleet.kill_coordinator()
        fleet.start_coordinator()
        with pytest.raises(ModelError):
            fleet.run(seconds=5)
    row = fleet.journal.run("run")
    assert row is not None and row.state == "failed" and fleet.journal.active_run() is None


def test_one_with_rounds_stays_and_says_how_to_leave_it(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_fleet(2, rounds=3)
    undisturbed = make_fleet(2, rounds=3).run()["model_sha256"]
    fleet.until(lambda: len(fleet.results()) == 1, 60)
    for _ in range(2):
        fleet.kill_coordinator()
        with monkeypatch.context() as patched:
            patched.setattr(FakeModelBuilder, "evaluate", cannot_evaluate)
            with pytest.raises(ApiaryError) as failed:
                fleet.start_coordinator()
                fleet.run(seconds=5)
        assert isinstance(failed.value, DataError)
        assert str(failed.value).endswith(
            "Run run is unfinished: the same command tries to go on with it; "
            "to leave it behind and begin another: apiary coordinator --new"
        )
    fleet.kill_coordinator()
    fleet.start_coordinator()
    assert fleet.run()["model_sha256"] == undisturbed


def test_requests_that_look_are_no_line_in_the_log(
    make_fleet: MakeFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make_fleet(1, stay=True)
    with caplog.at_level(logging.INFO):
        for op in ("run.list", "node.heard", "release.list", "release.status"):
            assert fleet.ask(op).state == "done"
        assert fleet.ask("run.show", name="none").state == "refused"
        assert [m for m in caplog.messages if "operator=" in m] == []
        fleet.ask("run.start", name="one")
        assert len([m for m in caplog.messages if "op=run.start" in m]) == 1


@pytest.mark.parametrize("named", ["one", "runs/one", "runs/one/", "/srv/apiary/runs/one"])
def test_a_run_is_meant_by_its_folder_too(make_fleet: MakeFleet, named: str) -> None:
    fleet = make_fleet(1, stay=True)
    fleet.ask("run.start", name="one")
    shown = fleet.ask("run.show", name=named)
    assert shown.state == "done" and shown.result["run"] == "one"  # type: ignore[index, call-overload]  # JSON
    assert fleet.ask("run.stop", name=named).state == "done"


def test_no_run_begins_by_itself_at_the_first_start(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, stay=True, rounds=1, more={"schedule": {"every_hours": 0.1}})
    for _ in range(3500):
        fleet.turn()
    assert fleet.journal.runs("1 = 1") == []
    fleet.until(lambda: fleet.journal.runs("1 = 1"), 30)


def test_an_unknown_tag_is_answered_with_those_there_are(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, stay=True, tags={"pi-00": "north", "pi-01": "south"})
    fleet.until(lambda: fleet.coordinator is not None and len(fleet.coordinator.roster) == 2, 10)
    assert fleet.ask("node.pause", nodes=["site=nroth"]).why == (
        "no node has the tag site=nroth; tags of nodes heard of: site=north, site=south"
    )
    assert fleet.ask("node.pause", nodes=["sight=north"]).why == (
        "no node has the tag sight=north; tags of nodes heard of: site=north, site=south"
    )
