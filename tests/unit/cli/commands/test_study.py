"""`apiary study`: what is missing is run, what is done is not, and one run that fails stops no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.stand_ins.regression import PLAN, RegressionBuilder, RegressionRuntime

from apiary.errors import SettingsError
from apiary.settings import Settings, load_settings
from apiary_cli import main as cli
from apiary_cli.commands.study import Study
from apiary_cli.study.plan import Cell, StudyFile, StudyPlan, identity, plan_of, read_plan
from apiary_cli.study.results import ResultsFile


def study_of(**parts: Any) -> StudyPlan:
    return plan_of(
        StudyFile.model_validate(
            {
                "source": "digits",
                "limit": 120,
                "shares": {"nodes": 3},
                "settings": {
                    "run": {"rounds": 2, "min_nodes": 1, "plan": PLAN},
                    "coordinator": {"sync": False},
                },
                "grid": {"shares.alpha": [0.5, 5.0]},
                **parts,
            }
        )
    )


def todo_of(plan: StudyPlan, folder: Path) -> list[tuple[Cell, Settings, str]]:
    found = []
    for cell in plan.cells:
        given = {**cell.overrides, "run.seed": cell.seed, "coordinator.runs_dir": folder / "runs"}
        settings = load_settings(None, given).settings
        found.append((cell, settings, identity(cell, plan.file, settings)))
    return found


def made(plan: StudyPlan, folder: Path, stop: Callable[[], bool] = lambda: False) -> None:
    folder.mkdir(exist_ok=True)
    there = ResultsFile(folder).read()
    todo = [one for one in todo_of(plan, folder) if one[2] not in there]
    Study(plan, folder, 1, stop, builders=RegressionBuilder, runtime=RegressionRuntime()).run(todo)


def test_a_study_that_was_stopped_goes_on_with_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = study_of(seeds=[0, 1], grid={"shares.alpha": [0.5]})
    results = ResultsFile(tmp_path / "cut")
    made(plan, tmp_path / "cut", stop=lambda: len(results.read()) == 1)
    assert len(results.read()) == 1
    assert "1 of 2: shares.alpha 0.5, seed 0: accuracy" in capsys.readouterr().err
    made(plan, tmp_path / "cut")
    err = capsys.readouterr().err
    assert "2 of 2: shares.alpha 0.5, seed 1" in err and "1 of 2" not in err

    made(plan, tmp_path / "whole")
    cut, whole = results.read(), ResultsFile(tmp_path / "whole").read()
    assert {key: row.curve for key, row in cut.items()} == {key: row.curve for key, row in whole.items()}
    folders = {row.folder for row in cut.values()}
    assert len(folders) == 2
    for folder in folders:
        assert folder is not None and (tmp_path / "cut" / folder / "report.html").exists()


def test_a_run_that_fails_is_noted_and_the_next_begins(tmp_path: Path) -> None:
    plan = study_of(grid={"shares.nodes": [3, 5000]})
    made(plan, tmp_path)
    good, failed = ResultsFile(tmp_path).read().values()
    assert good.error is None and good.last(1) is not None
    assert failed.error is not None and "cannot give 5000 nodes" in failed.error


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["study", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(
        'source = "digits"\nseeds = [0, 1]\nbaseline = { case = "a" }\nshares = { nodes = 4 }\n'
        '[settings]\n"run.rounds" = 2\n[case.a]\n[case.b]\n"run.strategy" = "fedacg"\n'
    )
    return path


def test_what_a_study_asks_for_is_listed(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = told(capsys, str(file), "--list", "--json", "--out", str(tmp_path / "out"))
    assert code == 0
    assert json.loads(out)["runs"][2] == {"axes": {"case": "a"}, "seed": 1, "state": "to do"}
    assert not (tmp_path / "out").exists(), "looking makes nothing"


def test_another_source_is_other_runs(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('source = "digits"\nseeds = [0]\n')
    assert read_plan(path).file.source == "digits"
    assert read_plan(path, source="cifar10.npz").file.source == "cifar10.npz"
    with pytest.raises(SettingsError, match="source"):
        read_plan(path, source="")


def test_the_table_of_nothing(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, str(file), "--table", "--out", str(tmp_path / "out"))
    assert code == 0 and "0 of 2" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('"run.strategy" = "fedmagic"', "b, seed 0: run.strategy"),
        ('"run.min_nodes" = 9', "run.min_nodes is 9, and shares.nodes 4: no round would ever begin"),
        ('"run.roundz" = 9', "roundz"),
        ('"run.rounds" = 0', "b, seed 0: "),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_run(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, why: str
) -> None:
    text = file.read_text().replace('"run.strategy" = "fedacg"', line)
    file.write_text(text)
    code, _, err = told(capsys, str(file), "--out", str(tmp_path / "out"))
    assert code == 2
    assert why in err
    assert not (tmp_path / "out").exists()
