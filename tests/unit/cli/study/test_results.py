"""Means over seeds, paired differences, and a results file that outlives a power cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from apiary_cli.study.plan import StudyFile, StudyPlan, plan_of
from apiary_cli.study.results import RESULTS, ResultsFile, RunResult, estimate, points_of
from apiary_cli.study.table import legend, markdown, rows


def plan() -> StudyPlan:
    return plan_of(
        StudyFile.model_validate(
            {
                "source": "digits",
                "seeds": [0, 1, 2],
                "tail": 2,
                "baseline": {"case": "a|b"},
                "case": {"a|b": {}, "other": {"run.strategy": "fedacg"}},
                "grid": {"shares.alpha": [0.1]},
            }
        )
    )


def row(case: str, seed: int, *accuracies: float, **more: object) -> RunResult:
    return RunResult.model_validate(
        {
            "id": f"{case}{seed}",
            "axes": (("case", case), ("shares.alpha", "0.1")),
            "seed": seed,
            "curve": tuple(enumerate(accuracies)),
            "best": max(accuracies, default=None),
            "bytes_up": 1000 * (seed + 1),
            **more,
        }
    )


def test_the_interval_is_students() -> None:
    # By hand: the deviation of .50, .52, .54 is .02, t with 2 degrees of freedom 4.303.
    found = estimate([0.50, 0.52, 0.54])
    assert found is not None
    assert found.mean == pytest.approx(0.52)
    assert found.half == pytest.approx(4.303 * 0.02 / 3**0.5)
    many = estimate([0.0, 1.0] * 50)
    assert many is not None and many.half == pytest.approx(1.960 * 0.502519 / 10, rel=1e-4)
    one = estimate([0.7])
    assert one is not None and one.half is None
    assert estimate([]) is None


def test_the_last_rounds_count_and_not_the_untrained_model() -> None:
    assert row("other", 0, 0.1, 0.5, 0.6, 0.8).last(2) == pytest.approx(0.7)
    assert row("other", 0, 0.1, 0.5).last(2) == pytest.approx(0.5)
    assert row("other", 0, 0.1).last(2) is None


def test_gains_are_paired_by_seed() -> None:
    results = [row("a|b", seed, 0.1, base) for seed, base in enumerate([0.2, 0.5, 0.8])]
    results += [row("other", seed, 0.1, base + 0.05) for seed, base in enumerate([0.2, 0.5])]
    results += [row("other", 2, error="it failed")]
    base, other = points_of(plan(), results)
    assert base.is_baseline and base.gain is None
    assert other.gain is not None and (other.gain.n, other.failed) == (2, 1)
    assert other.gain.mean == pytest.approx(0.05)
    assert other.gain.half == pytest.approx(0, abs=1e-12)
    lines = rows(plan(), [base, other])
    assert lines[1][2:5] == ["2 of 3, 1 failed", "40.0 ± 190.6", "+5.0 ± 0.0"]
    assert lines[0][4] == "baseline"
    text = markdown(plan(), [base, other])
    assert text.startswith("| case | shares.alpha | seeds | accuracy % | gain | best % | up | virtual |\n")
    assert "a\\|b" in text
    assert "points over a|b, paired by seed" in legend(plan())


def test_points_without_a_result_stay_in_the_table() -> None:
    first, second = points_of(plan(), [row("a|b", 0, 0.1, 0.4)])
    assert second.last is None
    assert rows(plan(), [first, second])[1][2:4] == ["0 of 3", ""]


def test_a_torn_line_costs_its_run_and_no_other(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path)
    assert results.read() == {}
    results.add(row("other", 0, 0.1, 0.4))
    results.add(row("other", 1, 0.1, 0.5))
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes()[:-20])
    assert set(results.read()) == {"other0"}
    results.add(row("other", 1, 0.1, 0.6))
    assert results.read()["other1"].best == 0.6
    results.add(row("other", 1, 0.1, 0.7))
    assert results.read()["other1"].best == 0.7, "the newer line counts"
