"""Which tests run which lines, kept in build/ and made anew for the files that changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.mutants.modules import mirrors
from tests.mutants.trial import Copy
from tests.places import ROOT

FILE_TIMEOUT_S = 900.0


class Reached:
    """For each test its seconds and, by module file, the lines that it ran."""

    def __init__(self, kept: Path):
        self._kept = kept
        self._files: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}

    def update(
        self, copy: Copy, modules: Iterable[Path], tests: Sequence[Path], say: Callable[[str], None]
    ) -> None:
        """Run the test files that are new, changed, or ran a module that changed, and note their lines."""
        now = {str(m): _digest(m) for m in modules}
        self._files = {f: kept for f, kept in self._files.items() if (ROOT / f).exists()}
        for i, file in enumerate(tests, 1):
            digest = _digest(file)
            kept = self._files.get(str(file))
            if kept and kept["digest"] == digest and all(now.get(m) == d for m, d in kept["ran"].items()):
                continue
            copy.renew(file)
            found = copy.lines(str(file), list(now), timeout_s=FILE_TIMEOUT_S)
            rows = {
                test: {"s": round(seconds, 3), "lines": {m: sorted(run) for m, run in lines.items() if run}}
                for test, (seconds, lines) in found.items()
            }
            ran = {m: now[m] for _, lines in found.values() for m, run in lines.items() if run}
            self._files[str(file)] = {"digest": digest, "ran": ran, "tests": rows}
            say(f"lines {i}/{len(tests)} {file}: {len(rows)} tests")
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            self._kept.write_text(json.dumps(self._files))

    def tests(
        self, module: str, file: Path, lines: range, *, among: Sequence[Path], budget_s: float
    ) -> tuple[list[str], list[str], float]:
        """The module's own tests that run one of these lines, others that do, and the seconds of all.

        What runs while the module is imported concerns each test that runs anything of it. Of the others the
        quickest that take `budget_s` together.
        """
        touching = []
        for kept in (self._files[str(f)] for f in among if str(f) in self._files):
            for test, row in kept["tests"].items():
                if run := row["lines"].get(str(file)):
                    touching.append((row["s"], test, run))
        touching.sort()
        hitting = [t for t in touching if any(line in lines for line in t[2])] or touching
        own = [(s, test) for s, test, _ in hitting if mirrors(module, test)]
        others, spent = [], 0.0
        for seconds, test, _ in hitting:
            if not mirrors(module, test) and spent + seconds <= budget_s:
                others.append(test)
                spent += seconds
        return [test for _, test in own], others, spent + sum(s for s, _ in own)


def _digest(file: Path) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:16]
