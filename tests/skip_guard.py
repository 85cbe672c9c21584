"""A pytest plugin for CI: a run in which a test was skipped for an unforeseen reason fails.

A skip is how a test that no longer runs anywhere stays unseen. Loaded by `-p skip_guard`.
"""

from __future__ import annotations

import pytest

ALLOWED_REASONS = frozenset({"no CUDA device", "no shared data"})


class SkipGuard:
    """Collects the skips of one session; expected failures are not skips."""

    def __init__(self) -> None:
        self.unforeseen: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Keeps the report's test and reason if it is a skip for a reason not allowed."""
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        assert isinstance(report.longrepr, tuple), "pytest gives a skip as (path, line, reason)"
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in ALLOWED_REASONS:
            self.unforeseen.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unforeseen and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unforeseen:
            allowed = ", ".join(sorted(ALLOWED_REASONS))
            terminalreporter.section(f"skips not allowed in CI (allowed: {allowed})")
            for line in self.unforeseen:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Registers one guard a session."""
    config.pluginmanager.register(SkipGuard(), "skip-guard-session")
