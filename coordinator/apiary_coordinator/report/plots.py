"""The plots of a run, as matplotlib figures without any global state.

Drawn twice: on white for the PNG files, and as SVG in the page's own ink so that one drawing serves light
and dark. Colours follow Okabe and Ito, which the colour-blind tell apart; a shape or a number always says
the same.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from apiary_coordinator.report.tables import ReportRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#2b83c6"
ORANGE: Final = "#e08e0b"
GREEN: Final = "#00a078"
_PALETTE: Final = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#8c8c8c")
_WIDTH: Final = 4.9  # inches, 353 points: about the width of a phone, so that 9 points stay 9 there
_MOST_NODES: Final = 30
_NAMED_RUNS: Final = 8


@dataclass(frozen=True, slots=True)
class Style:
    """Ink of text and lines, and what lies behind."""

    ink: str
    paper: str


PAPER: Final = Style("#22272e", "#ffffff")
INLINE: Final = Style("#010203", "none")
"""For SVG inside the page: this ink becomes `currentColor`."""

Draw = Callable[[Style], "Figure"]


def of(record: ReportRun) -> dict[str, Draw]:
    """Every plot for which the run has figures, by file name."""
    plots: dict[str, Draw] = {}
    if any(r.accuracy is not None for r in record.rounds):
        plots["rounds"] = partial(accuracy_and_loss, record)
    if record.chain and any(r.accuracy is not None for r in record.rounds):
        plots["chain"] = partial(chain_of_runs, record)
    best = record.best
    if best and best.confusion:
        plots["confusion"] = partial(confusion, best.confusion, record.labels, best.round)
    held = {name: node.labels for name, node in record.nodes.items() if node.labels}
    if held:
        plots["data"] = lambda style: data_per_node(held, record.labels, style=style)
    if _accuracies(record):
        plots["nodes"] = partial(node_accuracy, record)
    return plots


def accuracy_and_loss(record: ReportRun, style: Style = PAPER) -> Figure:
    """Accuracy above, loss below, by round; the best round is marked, failed ones leave a cross."""
    figure = new_figure(4.4, style)
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2], "hspace": 0.12})
    closed = [r for r in record.rounds if r.state == "closed"]
    start = [] if record.initial.accuracy is None else [(0, record.initial.accuracy)]
    points = start + [(r.round, r.accuracy) for r in closed if r.accuracy is not None]
    few = len(points) <= 40
    top.plot(*_columns(points), color=BLUE, lw=2, marker="o" if few else "", ms=4, label="held-out pictures")
    nodes = [(r.round, r.node_accuracy) for r in closed if r.node_accuracy is not None]
    if nodes:
        top.plot(*_columns(nodes), color=ORANGE, lw=1.6, ls="--", label="nodes' own pictures (mean)")
    best = record.best
    if best and best.accuracy is not None:
        top.plot(
            best.round, best.accuracy, marker="*", ms=15, color=GREEN, ls="", zorder=5, label="best round"
        )
    failed = [r.round for r in record.rounds if r.state != "closed"]
    if failed:
        top.plot(failed, [0.02] * len(failed), "x", color="#d55e00", ms=7, mew=2, label="failed round")
    lowest = min([a for _, a in points + nodes], default=0.0)
    top.set_ylim(-0.02 if lowest < 0.5 or failed else 0.48, 1.02)
    top.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    top.set_ylabel("accuracy")
    losses = [] if record.initial.loss is None else [(0, record.initial.loss)]
    losses += [(r.round, r.loss) for r in closed if r.loss is not None]
    bottom.plot(*_columns(losses), color=BLUE, lw=2, marker="o" if few else "", ms=4)
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("loss")
    bottom.set_xlabel("round")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axes in (top, bottom):
        plain(axes, style)
    figure.align_ylabels()
    legend = top.legend(frameon=False, labelcolor=style.ink, fontsize=9, loc="lower right")
    legend.set_zorder(6)
    return figure


def chain_of_runs(record: ReportRun, style: Style = PAPER) -> Figure:
    """Accuracy over all rounds of the runs before and this one; a line where one goes on from the other."""
    figure = new_figure(2.6, style)
    axes = figure.subplots()
    own = [(r.round, r.accuracy) for r in record.rounds if r.accuracy is not None]
    runs = [(one.run, list(one.points)) for one in record.chain] + [(record.run, own)]
    offset, last = 0, None
    for i, (name, points) in enumerate(runs):
        moved = [(offset + n, accuracy) for n, accuracy in points]
        newest = i == len(runs) - 1
        joined = [last, *moved] if last is not None else moved
        axes.plot(*_columns(joined), color=BLUE if newest else style.ink, alpha=1 if newest else 0.45, lw=2)
        if last is not None:
            axes.axvline(last[0], color=style.ink, alpha=0.25, lw=1, ls=":")
        if moved:
            offset, last = moved[-1][0], moved[-1]
            if len(runs) <= _NAMED_RUNS:
                axes.annotate(
                    short(name, 16), (joined[0][0], 0.03), xycoords=("data", "axes fraction"),
                    color=style.ink, alpha=0.75, fontsize=7, rotation=90, va="bottom",
                    xytext=(3, 0), textcoords="offset points",
                )  # fmt: skip
    axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes.set_ylabel("accuracy")
    axes.set_xlabel("rounds of all runs")
    axes.locator_params(axis="x", integer=True)
    plain(axes, style)
    return figure


def confusion(
    matrix: Sequence[Sequence[int]], labels: Sequence[str], round_: int, style: Style = PAPER
) -> Figure:
    """Rows are what a picture shows, columns what the model predicted; shaded by the share of its row."""
    counts = np.asarray(matrix, dtype=np.int64)
    n = len(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = new_figure(_WIDTH * 0.86, style)
    axes = figure.subplots()
    shade = np.zeros((n, n, 4))
    shade[..., :3] = [int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    shade[..., 3] = 0.92 * shares
    x, y = np.meshgrid(np.arange(n + 1) - 0.5, np.arange(n + 1) - 0.5)
    axes.pcolormesh(x, y, shade, rasterized=n > 40)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    if n <= 12:
        size = 15 if n <= 3 else 11 if n <= 7 else 8.5
        for i, j in np.ndindex(n, n):
            if counts[i, j]:
                ink = "#ffffff" if shares[i, j] > 0.55 else style.ink
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=ink, fontsize=size)
    step = max(1, n // 25)
    ticks = list(range(0, n, step))
    turned = n > 4 and max(len(x) for x in labels) > 3
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(ticks, [short(labels[i], 14) for i in ticks], **slant)
    axes.set_yticks(ticks, [short(labels[i], 14) for i in ticks])
    axes.set_xlabel("the model says")
    axes.set_ylabel("the picture shows")
    plain(axes, style, grid=False)
    axes.set_title(f"round {round_}", color=style.ink, fontsize=10, loc="left")
    return figure


def data_per_node(
    counts: Mapping[str, Mapping[str, int]],
    labels: Sequence[str],
    *,
    title: str | None = None,
    style: Style = PAPER,
) -> Figure:
    """A stacked bar of each node's pictures by label; of a large fleet, the nodes that hold most."""
    names = natural(counts)
    if len(names) > _MOST_NODES:
        names = sorted(names, key=lambda n: -sum(counts[n].values()))[:_MOST_NODES]
        title = f"{title or 'pictures'}: the {_MOST_NODES} largest of {len(counts)} nodes"
    rows = (len(labels) + 4) // 5
    figure = new_figure(1.0 + 0.3 * len(names) + 0.22 * rows, style)
    axes = figure.subplots()
    left = np.zeros(len(names))
    for i, label in enumerate(labels):
        width = np.array([counts[n].get(label, 0) for n in names], dtype=float)
        axes.barh(names, width, left=left, color=colour(i, len(labels)), label=short(label, 14),
                  height=0.72, edgecolor=style.paper, lw=0.5)  # fmt: skip
        left += width
    most = float(left.max(initial=1.0))
    for i, total in enumerate(left):
        axes.text(total + 0.012 * most, i, f"{int(total)}", va="center", color=style.ink, fontsize=9)
    axes.set_xlim(0, 1.1 * most)
    axes.set_yticks(range(len(names)), [short(n, 16) for n in names])
    axes.invert_yaxis()
    axes.set_xlabel("pictures")
    plain(axes, style, axis="x")
    if title:
        axes.set_title(short(title, 60), color=style.ink, fontsize=11, loc="left")
    if len(labels) <= 24:
        figure.legend(loc="outside lower center", ncols=min(5, len(labels)), frameon=False,
                      labelcolor=style.ink, fontsize=9, handlelength=1.0, columnspacing=1.2)  # fmt: skip
    return figure


def node_accuracy(record: ReportRun, style: Style = PAPER) -> Figure:
    """Each node's accuracy on its own held-back pictures, before and after training, in its last round."""
    found = _accuracies(record)
    names = natural(found)[:_MOST_NODES]
    figure = new_figure(1.2 + 0.3 * len(names), style)
    axes = figure.subplots()
    for i, name in enumerate(names):
        before, after = found[name]
        if before is not None:
            axes.plot([before, after], [i, i], color=style.ink, alpha=0.35, lw=2, zorder=1)
            axes.plot(before, i, "o", color=ORANGE, mfc="none", mew=2, ms=7,
                      label="before training" if i == 0 else None)  # fmt: skip
        axes.plot(after, i, "o", color=BLUE, ms=8, label="after training" if i == 0 else None)
    axes.set_yticks(range(len(names)), [short(n, 16) for n in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    axes.set_xlabel("accuracy on the node's own held-back pictures")
    plain(axes, style, axis="x")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=style.ink, fontsize=9)
    return figure


def render(figure: Figure, kind: str) -> bytes:
    """The figure as `png` or `svg` bytes; the same figure gives the same bytes."""
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "apiary"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a label in a script the font lacks
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=160, metadata=metadata)
    return out.getvalue()


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for the page: its ink, its own ids, no declarations."""
    text = render(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INLINE.ink, "currentColor")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", text)
    )


def natural(names: Iterable[str]) -> list[str]:
    """`node-2` before `node-10`."""
    return sorted(names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)])


def _accuracies(record: ReportRun) -> dict[str, tuple[float | None, float]]:
    found: dict[str, tuple[float | None, float]] = {}
    for r in record.rounds:
        for name, measured in r.node_metrics.items():
            if measured.accuracy is not None:
                found[name] = (measured.accuracy_before, measured.accuracy)
    return found


def new_figure(height: float, style: Style) -> Figure:
    """An empty figure as wide as a phone; `height` in inches."""
    from matplotlib.figure import Figure

    return Figure((_WIDTH, height), facecolor=style.paper, layout="constrained")


def plain(axes: Axes, style: Style, *, grid: bool = True, axis: Literal["both", "x", "y"] = "both") -> None:
    """Axes without a frame, in the style's ink."""
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=style.ink, alpha=0.5)
    axes.tick_params(colors=style.ink, labelsize=9, length=3)
    axes.xaxis.label.set(color=style.ink, fontsize=10)
    axes.yaxis.label.set(color=style.ink, fontsize=10)
    if grid:
        axes.grid(visible=True, axis=axis, color=style.ink, alpha=0.14, lw=0.8)
        axes.set_axisbelow(True)


def colour(i: int, n: int) -> Any:
    """The `i`-th of `n` colours."""
    if n <= len(_PALETTE):
        return _PALETTE[i]
    from matplotlib import colormaps

    # Beyond eight, hue alone fails; viridis runs in lightness too, and neighbours alternate between halves.
    half = (n + 1) // 2
    place = i // 2 + (half if i % 2 else 0)
    return colormaps["viridis"](0.2 + 0.78 * place / max(n - 1, 1))


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def short(text: str, most: int) -> str:
    """`text` cut to fit; a dollar sign would start mathematics."""
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
