"""Would the tests notice wrong code? Changes the modules that carry promises, one slip at a time.

`make mutants` draws 40 mutants of each module (`ARGS='--sample 100'`, or `--all`), and runs the tests that
run the changed line. `ARGS='--module round/state --module edge/training'` names modules by a part of their
names. What was tried is kept in build/mutants/, so that a run that was stopped goes on; `--again` tries once
more what was not noticed, `--list` shows it. A survivor that changes nothing stands with its reason in
harmless.toml; of the others at least 95 % must be noticed in each module, or this ends with 1. Hours for all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutants import trial
from tests.mutants.modules import files_for, modules
from tests.mutants.mutations import Mutant, function_source, mutants
from tests.mutants.reached import Reached
from tests.places import ROOT

BUILD = ROOT / "build" / "mutants"
HARMLESS = Path(__file__).with_name("harmless.toml")
ENOUGH = 0.95
SAMPLE = 40
BUDGET_S = 60.0
"""Seconds of other tests than the module's own that a mutant is tried on."""
SLOWER, START_S = 5.0, 60.0
"""A trial may take so many times what the tests take, and so many seconds more."""


@dataclass(frozen=True, slots=True)
class Count:
    """What became of a module's mutants."""

    tried: int
    noticed: int
    harmless: int

    @property
    def share(self) -> float:
        """Noticed of those that are not harmless."""
        judged = self.tried - self.harmless
        return self.noticed / judged if judged else 1.0


def harmless() -> dict[str, str]:
    """Reasons by mutant: it changes nothing that anybody could see, and no test can notice it."""
    by_module: dict[str, dict[str, str]] = tomllib.loads(HARMLESS.read_text())
    return {
        f"{module}::{text}": why for module, reasons in by_module.items() for text, why in reasons.items()
    }


def count(tried: Sequence[Mutant], found: dict[str, Any], reasons: dict[str, str]) -> Count:
    noticed = sum(bool(found[m.key]["by"]) for m in tried)
    return Count(len(tried), noticed, sum(m.key in reasons and not found[m.key]["by"] for m in tried))


def table(counts: dict[str, Count]) -> str:
    lines = ["| module | tried | noticed | harmless | share |", "|---|---|---|---|---|"]
    for name, c in counts.items():
        mark = "" if c.share >= ENOUGH else " (too few)"
        lines.append(f"| `{name}` | {c.tried} | {c.noticed} | {c.harmless} | {100 * c.share:.1f} %{mark} |")
    whole = Count(*(sum(getattr(c, f) for c in counts.values()) for f in ("tried", "noticed", "harmless")))
    lines.append(f"| all | {whole.tried} | {whole.noticed} | {whole.harmless} | {100 * whole.share:.1f} % |")
    return "\n".join(lines)


class Trials:
    """What was tried before, and trying more."""

    def __init__(self, kept: Path, copy: trial.Copy, reached: Reached):
        self._kept = kept
        self._copy = copy
        self._reached = reached
        self.found: dict[str, dict[str, Any]] = {}
        if kept.exists():
            rows = map(json.loads, kept.read_text().splitlines())
            self.found = {row["mutant"]: row for row in rows}

    def done(self, mutant: Mutant, source: str, *, again: bool) -> bool:
        """Whether this was tried on the function as it is now; `again`: and was noticed."""
        row = self.found.get(mutant.key)
        if row is None or row["of"] != _of(source, mutant):
            return False
        return bool(row["by"]) or not again

    def attempt(self, mutant: Mutant, file: Path, source: str, among: Sequence[Path]) -> str | None:
        """Which test of these files notices it, if any."""
        own, others, seconds = self._reached.tests(
            mutant.module, file, mutant.lines, among=among, budget_s=BUDGET_S
        )
        timeout_s = START_S + SLOWER * seconds
        self._copy.change(file, mutant.source)
        try:
            by, spent = None, 0.0
            for tests in filter(None, (own, others)):
                noticed = self._copy.passes(tests, timeout_s=timeout_s)
                by, spent = noticed.by, spent + noticed.seconds
                if by is not None:
                    break
        finally:
            self._copy.change(file, source)
        row = {
            "mutant": mutant.key,
            "of": _of(source, mutant),
            "by": by,
            "tests": len(own) + len(others),
            "s": round(spent, 1),
        }
        self.found[mutant.key] = row
        with self._kept.open("a") as out:
            out.write(json.dumps(row) + "\n")
        return by


def _of(source: str, mutant: Mutant) -> str:
    return hashlib.sha256(function_source(source, mutant.function).encode()).hexdigest()[:16]


def _say(text: str) -> None:
    print(text, flush=True)


def _chosen(found: list[Mutant], args: argparse.Namespace) -> list[Mutant]:
    drawn = sorted(found, key=lambda m: m.drawn)
    return drawn if args.all else drawn[: args.sample]


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", action="append", help="a part of a module's name; may be repeated")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="so many of each module")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--quick", action="store_true", help="unit and property tests only, no fleets")
    parser.add_argument("--again", action="store_true", help="try what was not noticed once more")
    parser.add_argument("--list", action="store_true", help="try nothing: show what was not noticed")
    parser.add_argument("--folder", type=Path, default=BUILD, help="where copy and results are kept")
    args = parser.parse_args(arguments)
    args.folder = args.folder.resolve()  # trials run in another one
    return args


def main(arguments: Sequence[str]) -> int:
    args = _arguments(arguments)
    wanted = {
        name: file
        for name, file in modules().items()
        if not args.module or any(part in name for part in args.module)
    }
    if not wanted:
        _say(f"no module is called so; there are {', '.join(modules())}")
        return 2
    copy, reached = trial.Copy(args.folder / "copy"), Reached(args.folder / "lines.json")
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.list:
        trial.load_what_tests_share()
        copy.make()
    trials, reasons = Trials(args.folder / "mutants.jsonl", copy, reached), harmless()
    counts = {}
    for name, file in wanted.items():
        source = (ROOT / file).read_text()
        drawn = _chosen(mutants(name, source), args)
        files = files_for(name, quick=args.quick)
        if not args.list:
            reached.update(copy, modules().values(), files, _say)
        for i, mutant in enumerate(drawn, 1):
            known = trials.done(mutant, source, again=args.again and mutant.key not in reasons)
            if not known and not args.list:
                by = trials.attempt(mutant, file, source, files)
                _say(f"{name} {i}/{len(drawn)} {'noticed' if by else 'NOT NOTICED: ' + mutant.key}")
        tried = [m for m in drawn if m.key in trials.found]
        counts[name] = count(tried, trials.found, reasons)
        for m in tried:
            if args.list and not trials.found[m.key]["by"] and m.key not in reasons:
                _say(f"{file}:{m.lines.start} {m.key} ({trials.found[m.key]['tests']} tests)")
    _say("\n" + table(counts))
    return int(any(c.share < ENOUGH for c in counts.values()))


if __name__ == "__main__":
    os.nice(max(0, 10 - os.nice(0)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so end the trial, too
    sys.exit(main(sys.argv[1:]))
