"""`make attacks`: one enrolled node, or somebody on the network, against a fleet of real processes.

A row is a function of a module in `tests/attacks/rows/` with the decorator `attack`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.attacks.attack import Attack, attacks
from tests.attacks.ground import Ground

Row = tuple[str, str, str, str]


def take(row: Attack, ground: Ground) -> Row:
    """One row: title, whether it held, what was tried, what the honest nodes got."""
    try:
        ground.take_out(row.mend)
        ground.broker.peak_mb = 0.0
        outcome = row.run(ground)
    except Exception as e:  # whatever it is belongs into the table
        said = (str(e) or repr(e)).splitlines()[0]
        return row.title, "NO", f"{type(e).__name__}: {said}"[:200], f"`{row.name}` did not hold"
    return row.title, "yes", outcome.tried, outcome.honest


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| attack | held | what was tried | what the honest nodes got |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def main() -> int:
    known = attacks()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the logs here, in a new folder")
    parser.add_argument(
        "--without-mends",
        action="store_true",
        help="take out each row's mend, and the broker's limits: rows that have one must not hold",
    )
    parser.add_argument("rows", nargs="*", help=f"only these: {' '.join(known)}")
    args = parser.parse_args()
    if unknown := sorted(set(args.rows) - set(known)):
        parser.error(f"no such rows: {', '.join(unknown)}")
    if args.folder is not None and args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="apiary-attacks-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with Ground(folder, mended=not args.without_mends) as ground:
            for name in args.rows or known:
                print(f"... {known[name].title}", flush=True)
                began = time.monotonic()
                rows.append(take(known[name], ground))
                print(f"    {time.monotonic() - began:5.0f} s  {' | '.join(rows[-1][1:])}", flush=True)
    print(table(rows))
    return int(any(held != "yes" for _, held, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
