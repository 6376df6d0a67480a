"""A study's results as a table: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from apiary.printable import printable
from apiary_cli.study.plan import CASE, StudyPlan
from apiary_cli.study.results import Estimate, Point
from apiary_coordinator.report.page import human_bytes, human_seconds


def header(plan: StudyPlan) -> list[str]:
    """The names of the columns."""
    axes = [axis for axis, _ in plan.axes]
    return [
        *axes,
        "seeds",
        "accuracy %",
        *(["gain"] if plan.file.baseline else []),
        "best %",
        "up",
        "virtual",
    ]


def rows(plan: StudyPlan, points: Sequence[Point]) -> list[list[str]]:
    """A row for each point of the grid: accuracy in percent, with half of its 95 % interval."""
    seeds = len(plan.file.seeds)
    made = []
    for point in points:
        gain = "baseline" if point.is_baseline else interval(point.gain, signed=True)
        done = f"{len(point.results)} of {seeds}" + (f", {point.failed} failed" if point.failed else "")
        made.append(
            [
                *(value for _, value in point.axes),
                done,
                interval(point.last),
                *([gain] if plan.file.baseline else []),
                interval(point.best),
                human_bytes(point.bytes_up),
                human_seconds(point.virtual_s),
            ]
        )
    return made


def interval(value: Estimate | None, *, signed: bool = False) -> str:
    """`52.6 ± 1.1`, in percent; with a sign for a difference."""
    if value is None:
        return ""
    mean = f"{100 * value.mean:+.1f}" if signed else f"{100 * value.mean:.1f}"
    return mean if value.half is None else f"{mean} ± {100 * value.half:.1f}"


def markdown(plan: StudyPlan, points: Sequence[Point]) -> str:
    """The table with what its columns are."""
    names = header(plan)
    numbers = len(names) - len(plan.axes)
    lines = [
        _row(names),
        _row([*["---"] * len(plan.axes), *["---:"] * numbers]),
        *(_row(row) for row in rows(plan, points)),
    ]
    return "\n".join([*lines, "", legend(plan), ""])


def legend(plan: StudyPlan) -> str:
    """How the columns are to be read, one paragraph."""
    tail = plan.file.tail
    of = "of the last evaluated round" if tail == 1 else f"mean of the last {tail} evaluated rounds"
    text = f"Accuracy: {of}, on held-out pictures, mean over seeds ± half of the 95 % interval (Student's t)."
    if plan.file.baseline:
        base = ", ".join(
            str(value) if axis == CASE else f"{axis} {value}" for axis, value in plan.file.baseline.items()
        )
        text += f" Gain: points over {base}, paired by seed."
    return text + " Up: bytes from all nodes. Virtual: time by the fleet's clock."


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"
