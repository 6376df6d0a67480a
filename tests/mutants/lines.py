"""A pytest plugin that finds out which tests run which lines of the modules that are to be changed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import coverage
import pytest

Lines = dict[str, set[int]]
"""By the module's file."""


class LineRecorder:
    """Seconds and lines of each test by its node id; what runs while files are imported is nobody's."""

    def __init__(self, files: Sequence[str]):
        self._files = files
        # Without a data file: nothing is written where the tests run.
        self._coverage = coverage.Coverage(data_file=None, config_file=False, include=list(files))
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()

    def start(self) -> None:
        self._coverage.start()

    def found(self) -> dict[str, tuple[float, Lines]]:
        """Ends it. Without tests that did not pass: they tell nothing about a mutant."""
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: dict[str, Lines] = defaultdict(lambda: defaultdict(set))
        for file in self._files:
            for line, tests in data.contexts_by_lineno(file).items():
                for test in tests:
                    lines[test][file].add(line)
        return {
            test: (seconds, dict(lines[test]))
            for test, seconds in self._seconds.items()
            if test not in self._failed
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        began = time.monotonic()
        result = yield
        self._seconds[item.nodeid] = time.monotonic() - began
        self._coverage.switch_context("")
        return result
