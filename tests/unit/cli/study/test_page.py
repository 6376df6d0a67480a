"""The study's page: a panel for each setting beside the compared one, bands over seeds, nothing loaded."""

from __future__ import annotations

import re

from apiary_cli.study.page import band, panels_of, render
from apiary_cli.study.plan import StudyFile, plan_of
from apiary_cli.study.results import RunResult, points_of

PLAN = plan_of(
    StudyFile.model_validate(
        {
            "source": "digits",
            "seeds": [0, 1],
            "case": {"fedavg": {}, "<b>": {"run.strategy": "fedacg"}},
            "grid": {"shares.alpha": [0.1, 1.0]},
        }
    )
)
RESULTS = [
    RunResult(
        id=cell.title, axes=cell.axes, seed=cell.seed, curve=((0, 0.1), (1, 0.2 + 0.1 * cell.seed), (2, 0.4)),
        best=0.4, best_round=2, rounds=2, folder="runs/one",
    )
    for cell in PLAN.cells
]  # fmt: skip


def test_the_compared_settings_share_a_panel() -> None:
    panels = panels_of(PLAN, points_of(PLAN, RESULTS))
    assert [(caption, [name for name, _ in lines]) for caption, lines in panels] == [
        ("shares.alpha 0.1", ["fedavg", "<b>"]),
        ("shares.alpha 1.0", ["fedavg", "<b>"]),
    ]


def test_the_band_is_that_of_the_seeds_in_the_rounds_that_all_have() -> None:
    longer = RESULTS[0].model_copy(update={"curve": ((0, 0.3), (1, 0.5), (2, 0.6), (3, 0.7))})
    rounds, low, mean, high = band([RESULTS[0], longer])
    assert rounds == [0, 1, 2]
    assert (low, high) == ([0.1, 0.2, 0.4], [0.3, 0.5, 0.6])
    assert mean == [0.2, 0.35, 0.5]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render(PLAN, points_of(PLAN, RESULTS), "<i>study</i>").decode()
    assert page.count("<svg") == 2
    assert page.count("<b>") == 1, "that of the page's own sentence"
    assert "&lt;i&gt;study&lt;/i&gt;" in page and "&lt;b&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!#|runs/)[^"]*"', page)
    assert "<script" not in page
    assert 'href="runs/one/report.html"' in page
    assert "8 of 8 simulated runs" in page


def test_a_study_without_a_result_has_a_page() -> None:
    page = render(PLAN, points_of(PLAN, []), "study").decode()
    assert "no run has ended" in page and "0 of 8" in page
