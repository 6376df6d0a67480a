"""A study's file: every case with every value and seed, and what is wrong named."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from apiary.errors import SettingsError
from apiary.settings import load_settings
from apiary_cli.study.plan import StudyFile, identity, plan_of, read_plan

CASES = {"fedavg": {}, "fedacg": {"run.strategy": "fedacg"}}


def file_of(**parts: object) -> StudyFile:
    return StudyFile.model_validate({"source": "digits", **parts})


def test_every_case_with_every_value_and_seed() -> None:
    grid = {"shares.alpha": [0.1, 1], "run.plan.epochs": [1, 2, 3]}
    plan = plan_of(file_of(seeds=[4, 2], case=CASES, grid=grid, settings={"run": {"rounds": 3}}))
    points = [(cell.seed, *(value for _, value in cell.axes)) for cell in plan.cells]
    assert points == list(itertools.product([4, 2], CASES, ["0.1", "1"], ["1", "2", "3"]))
    last = plan.cells[-1]
    assert last.sharing.alpha == 1 and last.sharing.seed == 2
    assert last.overrides == {"run": {"rounds": 3}, "run.plan.epochs": 3, "run.strategy": "fedacg"}
    assert last.title == "fedacg, shares.alpha 1, run.plan.epochs 3, seed 2"


def test_a_value_of_the_grid_comes_before_that_of_the_file() -> None:
    plan = plan_of(
        file_of(
            shares={"nodes": 4, "alpha": 9},
            fleet={"pace_s": 0.5, "latency_s": 1},
            grid={"shares.alpha": [0.1], "fleet.pace_s": [2]},
        )
    )
    (cell,) = plan.cells
    assert (cell.sharing.nodes, cell.sharing.alpha) == (4, 0.1)
    assert (cell.fleet.pace_s, cell.fleet.latency_s) == (2, 1)


def test_without_a_grid_there_is_a_run_for_each_seed() -> None:
    plan = plan_of(file_of(seeds=[0, 1, 2]))
    assert [cell.title for cell in plan.cells] == ["seed 0", "seed 1", "seed 2"]
    assert plan.lines is None


def test_what_is_compared_is_what_the_baseline_names() -> None:
    grid = {"run.strategy": ["fedavg", "fedacg"], "shares.alpha": [0.1, 1.0]}
    plan = plan_of(file_of(baseline={"run.strategy": "fedavg"}, grid=grid))
    assert plan.lines == "run.strategy"
    assert plan.baseline_of((("run.strategy", "fedacg"), ("shares.alpha", "1.0"))) == (
        ("run.strategy", "fedavg"),
        ("shares.alpha", "1.0"),
    )
    assert plan_of(file_of(grid=grid, case=CASES)).lines == "case"
    assert plan_of(file_of(grid=grid)).lines == "run.strategy"


def test_runs_that_differ_in_anything_have_other_identities() -> None:
    plan = plan_of(
        file_of(seeds=[0, 1], case=CASES, grid={"shares.alpha": [0.1, 1], "fleet.start_s": [1, 2]})
    )
    ids = [
        identity(cell, plan.file, load_settings(None, {**cell.overrides, "run.seed": cell.seed}).settings)
        for cell in plan.cells
    ]
    assert len(set(ids)) == len(plan.cells) == 16
    other = plan.file.model_copy(update={"limit": 7})
    assert identity(plan.cells[0], other, load_settings(None, {}).settings) not in ids


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "source"),
        ('source = "digits"\nsorce = 1', "sorce"),
        ('source = "digits"\nseeds = []', "seeds"),
        ('source = "digits"\nseeds = [1, 1]', "expected each once"),
        ('source = "digits"\nshares = { nodes = 0 }', "nodes"),
        ('source = "digits"\nshares = { nodes = 2, each = 3, by = "shards" }', "not by shards"),
        ('source = "digits"\n[grid]\n"shares.alpa" = [1]', "shares.alpa"),
        ('source = "digits"\n[grid]\n"fleet.pace_s" = [0]', "fleet.pace_s"),
        ('source = "digits"\n[grid]\n"run.seed" = [0]', "seeds are its list"),
        ('source = "digits"\n[grid]\n"run.rounds" = [2, 2]', "run.rounds has 2 more than once"),
        ('source = "digits"\n[grid]\n"run.rounds" = []', "grid.run.rounds"),
        ('source = "digits"\nbaseline = { case = "a" }\n', "there is no axis case; there are: none"),
        ('source = "digits"\nbaseline = { case = "a" }\n[case.b]', "case is never a; it is: b"),
        ('source = "digits"\n[grid]\n"case" = [1]', "cannot be named case"),
        ("source = digits", "is not TOML"),
        (
            'source = "digits"\nseeds = [0, 1, 2]\n[grid]\n'
            + "\n".join(f'"run.x{i}" = {list(range(20))}' for i in range(3)),
            "24000 runs, expected at most 10000",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_plan(path)
    assert str(path) in str(refused.value)
    assert why in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml"):
        read_plan(tmp_path / "gone.toml")
