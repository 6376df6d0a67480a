"""A pytest plugin: a session fails in which a test was skipped that skips.py does not allow."""

from __future__ import annotations

import pytest
from tests.skips import why_allowed


class SkipCheck:
    """Fails a session in which a test was skipped that tests/skips.py does not allow on this machine."""

    def __init__(self) -> None:
        self.not_allowed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a skip; an expected failure is reported as one, too, and is none."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that is skipped as a whole has no tests to report."""
        if report.skipped:
            self._note(f"{report.nodeid}::", report.longrepr)

    def _note(self, test: str, why: object) -> None:
        if why_allowed(test) is None:
            self.not_allowed.append(f"{test}: {why[2] if isinstance(why, tuple) else why}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a session that would succeed into one that fails."""
        good = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.not_allowed and session.exitstatus in good:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name them, and where to go."""
        if self.not_allowed:
            terminalreporter.section("skips that tests/skips.py does not allow", red=True)
            for line in self.not_allowed:
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipCheck(), "skip-check")
