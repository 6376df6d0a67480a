"""`study.html`: the table and a panel of curves for each setting beside the one compared, in one file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from apiary import __version__
from apiary_cli.study import table
from apiary_cli.study.plan import CASE, StudyPlan, text_of
from apiary_cli.study.results import Point, RunResult
from apiary_coordinator.report import plots
from apiary_coordinator.report.page import environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LEGEND: Final = 24


def render(plan: StudyPlan, points: Sequence[Point], name: str) -> bytes:
    """The page, UTF-8. Raises DataError where jinja2 is not installed."""
    made = environment(Path(__file__).parent)
    from markupsafe import Markup

    panels = [
        {
            "caption": caption,
            # Our own drawing: matplotlib escapes the text in it, so it goes in as it is.
            "svg": Markup(plots.inline_svg(curves(lines, plots.INLINE), f"panel{i}")),  # noqa: S704
        }
        for i, (caption, lines) in enumerate(panels_of(plan, points))
    ]
    runs = [(point, row) for point in points for row in point.results]
    page = made.get_template("study.html.j2").render(
        name=name,
        plan=plan,
        header=table.header(plan),
        rows=list(zip(points, table.rows(plan, points), strict=True)),
        legend=table.legend(plan),
        panels=panels,
        runs=runs,
        done=len(runs),
        best=max((p for p in points if p.last), key=lambda p: p.last.mean if p.last else 0, default=None),
        value=text_of,
        settings=described(plan),
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
    )
    return str(page).encode()


Lines = list[tuple[str, tuple[RunResult, ...]]]
"""A curve's name, and its runs, one a seed."""


def panels_of(plan: StudyPlan, points: Sequence[Point]) -> list[tuple[str, Lines]]:
    """Curves that are compared lie in one panel; the other settings make the panels, and their captions."""
    compared = plan.lines
    panels: dict[str, Lines] = {}
    for point in points:
        if not point.results:
            continue
        caption = ", ".join(
            value if axis == CASE else f"{axis} {value}" for axis, value in point.axes if axis != compared
        )
        name = next((value for axis, value in point.axes if axis == compared), plan.file.source)
        panels.setdefault(caption, []).append((name, point.results))
    return list(panels.items())


def curves(lines: Lines, style: plots.Style = plots.PAPER) -> Figure:
    """Accuracy by round: the mean over seeds, and a band from the lowest to the highest seed."""
    figure = plots.new_figure(3.6 + 0.2 * ((len(lines) + 2) // 3), style)
    axes = figure.subplots()
    for i, (name, runs) in enumerate(lines):
        colour = plots.colour(i, len(lines))
        rounds, low, mean, high = band(runs)
        axes.fill_between(rounds, low, high, color=colour, alpha=0.16, lw=0)
        axes.plot(rounds, mean, color=colour, lw=1.8, ls="-" if i < 8 else "--", label=plots.short(name, 24))
    axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes.set_ylabel("accuracy")
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True)
    plots.plain(axes, style)
    if len(lines) <= _MOST_LEGEND:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=style.ink, fontsize=9)
    return figure


def band(runs: Sequence[RunResult]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Round, lowest, mean and highest accuracy over runs, in the rounds that all of them evaluated."""
    by_round: dict[int, list[float]] = {}
    for run in runs:
        for number, accuracy in run.curve:
            by_round.setdefault(number, []).append(accuracy)
    shared = {number: values for number, values in sorted(by_round.items()) if len(values) == len(runs)}
    return (
        list(shared),
        [min(values) for values in shared.values()],
        [fmean(values) for values in shared.values()],
        [max(values) for values in shared.values()],
    )


def described(plan: StudyPlan) -> dict[str, Any]:
    """What the file says of all runs, for the page."""
    file = plan.file
    shares = {f"shares.{key}": value for key, value in file.shares.model_dump(exclude_none=True).items()}
    fleet = {f"fleet.{key}": value for key, value in file.fleet.model_dump(exclude_unset=True).items()}
    return {
        "source": file.source,
        "limit": file.limit,
        "seeds": file.seeds,
        **shares,
        **fleet,
        **file.settings,
    }
