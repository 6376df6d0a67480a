"""A profile of a run's nodes: written from its record alone, and what a simulation makes of it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.stand_ins.regression import PLAN, RegressionBuilder, RegressionRuntime

from apiary.errors import DataError
from apiary.settings import Settings
from apiary_cli import main as cli
from apiary_cli.simulation.fleet import FleetModel, read_profile, traits
from apiary_cli.simulation.profiling import of_run, start_and_pace
from apiary_cli.simulation.shares import Shares, Sharing, as_profiled, open_pool, share_out
from apiary_cli.simulation.simulation import Scenario, Simulated, simulate
from apiary_coordinator.report.history_file import read_history


def simulated(folder: Path, shares: Shares, nodes: Any, model: FleetModel) -> Simulated:
    folder.mkdir(parents=True)
    settings = Settings.model_validate(
        {
            "run": {"rounds": 2, "min_nodes": len(shares.names), "seed": 3, "plan": PLAN},
            "coordinator": {
                "state_dir": folder / "coordinator",
                "runs_dir": folder / "runs",
                "test_data": shares.test_data,
                "labels": list(shares.labels),
            },
        }
    )
    scenario = Scenario(shares, tuple(nodes), model, 3, runtime=RegressionRuntime())
    result = simulate(settings, scenario, folder, name="run", builders=RegressionBuilder)
    assert result is not None
    return result


def test_a_fleet_that_is_made_of_a_profile_takes_the_time_of_the_profiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = open_pool("digits", tmp_path / "data", data_dir=None, seed=3, limit=300)
    shares = share_out(pool, Sharing(8, by="quantity", seed=1))
    model = FleetModel(start_s=4.0, pace_s=0.2, pace_spread=1.2, up_mbit=0.05, down_mbit=0.05, server_s=7.0)
    first = simulated(tmp_path / "a", shares, traits(shares.names, model, seed=3), model)
    file = tmp_path / "fleet.json"
    assert cli.main(["nodes", "--profile", str(file), "--run", str(first.folder), "--port", "1"]) == 0
    assert "8 nodes of run run, 8 with their pace (median" in capsys.readouterr().out
    profile = read_profile(file)
    assert profile.server_s == pytest.approx(7.0, abs=0.1)
    again = as_profiled(pool, profile, seed=3)
    order = [again.names.index(name) for name in shares.names]
    assert (again.counts[order] == shares.counts).all()
    plain = FleetModel(server_s=profile.server_s or 0.0)
    second = simulated(tmp_path / "b", again, traits(again.names, plain, seed=3, profile=profile), plain)
    for one, other in zip(
        read_history(first.folder)["rounds"], read_history(second.folder)["rounds"], strict=True
    ):
        assert other["seconds"] == pytest.approx(one["seconds"], rel=0.2)
        assert (other["bytes_up"], other["bytes_down"]) == (one["bytes_up"], one["bytes_down"])


@pytest.mark.parametrize(
    ("seen", "start", "pace"),
    [
        ([(100, 5.0), (200, 8.0), (400, 14.0)], 2.0, 0.03),
        ([(100, 5.0), (100, 6.0), (100, 5.5)], 0.0, 0.055),
        ([(100, 9.0), (200, 8.0)], 0.0, 0.065),
        ([(1000, 10.0), (2000, 11.0), (3000, 12.0), (4000, 13.0), (10, 5.0)], 4.5, 0.001),
    ],
    ids=["alike", "one size", "no slope", "start below all"],
)
def test_the_start_is_told_from_the_steps_where_sizes_differ(
    seen: list[tuple[int, float]], start: float, pace: float
) -> None:
    found = start_and_pace(seen)
    assert found == pytest.approx((start, pace))


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ({"run": "r", "settings": {"run.plan.batch_size": 8}, "rounds": [], "nodes": {}}, "no round is over"),
        ({"run": "r", "settings": {}, "rounds": [], "nodes": {}}, "the record of run r cannot be read"),
        (
            {"run": "r", "settings": {"run.plan.batch_size": 8}, "rounds": [{"state": 1}], "nodes": {"a": 1}},
            "the record of run r cannot be read",
        ),
    ],
)
def test_a_record_without_nodes_or_of_another_form_is_refused(history: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        of_run(history)


def test_a_run_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, gone = tmp_path / "fleet.json", tmp_path / "gone"
    assert cli.main(["nodes", "--profile", str(file), "--run", str(gone)]) == 3
    assert str(gone) in capsys.readouterr().err
    runs = json.dumps(str(tmp_path))
    assert cli.main(["nodes", "--profile", str(file), "--set", f"coordinator.runs_dir={runs}"]) == 3
    assert "holds no run: name one with --run" in capsys.readouterr().err
    assert cli.main(["nodes", "--run", str(gone)]) == 2
    assert not file.exists()
