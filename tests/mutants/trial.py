"""Tests of a copy of the checkout, run in children of one process that has loaded what they share.

The copy lets a module be changed while the checkout is worked on; a fork saves a second of imports a trial.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
from tests.mutants.lines import LineRecorder, Lines
from tests.mutants.modules import LEFT_OUT
from tests.places import ROOT

LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv*", ".hypothesis", ".*_cache", "__pycache__", "build", "dist", "runs", "state", "site"
)
SHARED = (
    "coverage", "numpy", "pydantic", "pydantic_settings", "msgpack", "paho.mqtt.client", "rich.console",
    "logging.handlers",
    "cryptography.x509", "cryptography.hazmat.primitives.serialization", "hypothesis.strategies", "sqlite3",
    "PIL.Image", "http.server", "multiprocessing.connection", "tomli_w", "ssl",
)  # fmt: skip
PACKAGES = ("tests", "benchmarks", "tools", "apiary", "apiary_coordinator", "apiary_edge", "apiary_cli")
FAILED, NO_SUCH_TEST, NOTHING_RAN = 1, 4, 5
"""Exit codes of pytest."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """`by` is the first test that failed, or `timeout`; None where all passed."""

    by: str | None
    seconds: float


class TestIsGoneError(Exception):
    """A test that was to be run is not there any more."""


class Copy:
    """A copy of the checkout in which one module at a time is changed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self) -> None:
        """Copy the checkout as it is now."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(ROOT, self.folder, ignore=LEFT_BEHIND, symlinks=True)

    def renew(self, file: Path) -> None:
        """Take over one file of the checkout as it is now."""
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, self.folder / file)

    def change(self, file: Path, source: str) -> None:
        """Write another text in the place of a module; no compiled file of the former may be taken for it."""
        path = self.folder / file
        path.write_text(source)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def passes(self, tests: Sequence[str], *, timeout_s: float) -> Noticed:
        """Run these tests until one fails. Raises TestIsGoneError."""
        began = time.monotonic()
        output = self.folder / "output.txt"
        code = self._in_child(lambda: pytest.main(["-x", *self._options(), *tests]), output, timeout_s)
        seconds = time.monotonic() - began
        said = output.read_text(errors="replace") if code in (NO_SUCH_TEST, NOTHING_RAN) else ""
        if code == NOTHING_RAN or "ERROR: not found" in said:
            raise TestIsGoneError(said[-2000:])
        if code is None:
            return Noticed("timeout", seconds)
        return Noticed(_first_failed(output) if code else None, seconds)

    def lines(
        self, test_file: str, files: Collection[str], *, timeout_s: float
    ) -> dict[str, tuple[float, Lines]]:
        """Which lines of `files` each passing test of one file runs, and how long it takes."""
        kept = self.folder / "lines.json"
        kept.unlink(missing_ok=True)

        def record() -> int:
            recorder = LineRecorder([str(self.folder / f) for f in files])
            recorder.start()
            code = pytest.main([*self._options(), "-m", LEFT_OUT, test_file], plugins=[recorder])
            lines = {
                test: (seconds, {file: sorted(found) for file, found in of.items()})
                for test, (seconds, of) in recorder.found().items()
            }
            kept.write_text(json.dumps(lines))
            return int(code)

        self._in_child(record, self.folder / "output.txt", timeout_s)
        if not kept.exists():
            return {}
        found: dict[str, tuple[float, Lines]] = {
            test: (seconds, {file: set(lines) for file, lines in of.items()})
            for test, (seconds, of) in json.loads(kept.read_text()).items()
        }
        prefix = f"{self.folder}/"
        return {
            test: (seconds, {file.removeprefix(prefix): run for file, run in lines.items()})
            for test, (seconds, lines) in found.items()
        }

    def _options(self) -> list[str]:
        return [
            "-q", "-rfE", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist",
            "--hypothesis-profile=mutants", f"--basetemp={self.folder / 'tmp'}", f"--rootdir={self.folder}",
        ]  # fmt: skip

    def _in_child(self, job: Callable[[], Any], output: Path, timeout_s: float) -> int | None:
        """The child's exit code; None where it took too long."""
        child = os.fork()
        if child == 0:
            self._be_child(job, output)
        ends = time.monotonic() + timeout_s
        try:
            while time.monotonic() < ends:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.02)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # its own children, too
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)

    def _be_child(self, job: Callable[[], Any], output: Path) -> NoReturn:
        code = 99
        try:
            os.setsid()
            out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(out, stream)
            sides = [str(self.folder / side) for side in ("core", "coordinator", "edge", "cli")]
            # Of the checkout only what is installed into it.
            foreign = [p for p in sys.path if not _of_checkout(p)]
            sys.path[:] = [*sides, *foreign, str(self.folder)]
            os.environ["PYTHONPATH"] = os.pathsep.join([*sides, str(self.folder)])
            os.chdir(self.folder)
            for name in [n for n in sys.modules if n.split(".")[0] in PACKAGES]:
                del sys.modules[name]
            importlib.invalidate_caches()
            code = int(job())
        finally:
            os._exit(code)


def load_what_tests_share() -> None:
    """Import it once, before any fork; nothing of ours, and nothing that starts threads."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in SHARED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # A smaller example of a failure is of no use here.
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        report_multiple_bugs=False,
    )


def _of_checkout(entry: str) -> bool:
    path = Path(entry or ".").resolve()
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts and "lib" not in path.parts


def _first_failed(output: Path) -> str:
    for line in output.read_text(errors="replace").splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split()[1]
    return "the session"
