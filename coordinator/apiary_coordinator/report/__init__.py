"""The record of a run as people want it: a page, plots and a spreadsheet, from `history.jsonl`."""

from pathlib import Path

from apiary.files import write_atomic
from apiary_coordinator.report.tables import csv_bytes, read_record

__all__ = ["write"]


def write(run_dir: Path) -> list[Path]:
    """Write `history.csv`, `plots/*.png` and `report.html` into `run_dir`; returns their paths.

    Reads `history.jsonl` and, once it is there, `summary.json`. Raises DataError where they do not hold,
    StoreError where the disk does not take the files.
    """
    from apiary_coordinator.report import page, plots

    record = read_record(run_dir)
    written = [run_dir / "history.csv"]
    write_atomic(written[0], csv_bytes(record))
    for name, draw in plots.of(record).items():
        path = run_dir / "plots" / f"{name}.png"
        write_atomic(path, plots.render(draw(plots.PAPER), "png"))
        written.append(path)
    written.append(run_dir / "report.html")
    write_atomic(written[-1], page.render(record, run_dir))
    return written
