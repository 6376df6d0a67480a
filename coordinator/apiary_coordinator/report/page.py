"""`report.html`: one file that opens from disk, on a phone, in the dark and on paper, and loads nothing."""

import time
from pathlib import Path
from typing import Any, Final

from apiary import __version__
from apiary.errors import DataError
from apiary.printable import printable
from apiary_coordinator.report import plots
from apiary_coordinator.report.tables import ReportRun, files_in

_CAPTIONS: Final = {
    "rounds": "Accuracy and loss after each round, on the server's held-out pictures",
    "chain": "Accuracy over the runs that this one goes on from; this run in blue",
    "confusion": "What the best model takes for what",
    "data": "What each node holds; no picture has left it",
    "nodes": "Before and after a node's own training, in its last round",
}


def render(record: ReportRun, run_dir: Path) -> bytes:
    """The page, UTF-8. Raises DataError where jinja2 is not installed."""
    made = environment()
    from markupsafe import Markup

    figures = [
        {
            "name": name,
            "caption": _CAPTIONS[name],
            # Our own drawing: matplotlib escapes the text in it, so it goes in as it is.
            "svg": Markup(plots.inline_svg(draw(plots.INLINE), name)),  # noqa: S704
        }
        for name, draw in plots.of(record).items()
    ]
    best = record.best
    summary = record.summary
    closed = [r for r in record.rounds if r.state == "closed"]
    page = made.get_template("page.html.j2").render(
        record=record,
        best=best,
        summary=summary,
        figures=figures,
        nodes=[(n, record.nodes[n]) for n in plots.natural(record.nodes)],
        files=files_in(run_dir),
        closed=len(closed),
        failed=len(record.rounds) - len(closed),
        tested=sum(map(sum, best.confusion)) if best and best.confusion else None,
        pictures=sum(n.samples or 0 for n in record.nodes.values()),
        up=summary.get("bytes_up", sum(r.bytes_up for r in record.rounds)),
        down=summary.get("bytes_down", sum(r.bytes_down for r in record.rounds)),
        seconds=summary.get("seconds", sum(r.seconds for r in record.rounds)),
        took_part={n: sum(n in r.contributors for r in closed) for n in record.nodes},
        shares={n: next((r.contributors[n] for r in reversed(closed) if n in r.contributors), None)
                for n in record.nodes},
        created=_created(record.created),
        version=__version__,
    )  # fmt: skip
    return str(page).encode()


def environment(*folders: Path) -> Any:
    """The templates of the report, and those of `folders`, which may include its style.css.

    What a template prints is escaped, and has no control characters. Raises DataError where jinja2 is not
    installed.
    """
    try:
        import jinja2
    except ImportError:
        raise DataError("the report needs jinja2: pip install 'apiary-fl[coordinator]'") from None
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        # Markup is our own, and a text as well.
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
    )
    made.filters |= {
        "percent": percent, "bytes": human_bytes, "seconds": human_seconds, "loss": _loss, "setting": _setting
    }  # fmt: skip
    return made


def percent(value: float | None) -> str:
    """.9576 -> `95.8 %`."""
    return "–" if value is None else f"{100 * value:.1f} %"


def human_bytes(value: float | None) -> str:
    """1234567 -> `1.2 MB`."""
    if value is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} bytes"


def human_seconds(value: float | None) -> str:
    """75.2 -> `1 min 15 s`."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value < 100 else f"{value:.3g}"


def _setting(value: Any) -> str:
    return "not set" if value is None else str(value)


def _created(value: float | str | None) -> str:
    if isinstance(value, str) or value is None:
        return value or ""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(value))
