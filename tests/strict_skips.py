"""A pytest plugin: with --strict-skips a run fails on a skip whose reason allowed_skips.txt does not list.

conftest.py loads it. Expected failures (xfail) are no skips.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


def pytest_addoption(parser):
    parser.addoption(
        "--strict-skips", action="store_true", help=f"fail on a skip whose reason {ALLOWED.name} does not list"
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and unlisted(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    reasons = unlisted(config)
    if reasons:
        terminalreporter.section("skips that are not allowed", red=True)
        for place, reason in reasons:
            terminalreporter.line(f"{place}: {reason}")
        terminalreporter.line(f"Install what is missing, or list the reason in tests/{ALLOWED.name} and say why.")


def unlisted(config):
    """Where and why tests were skipped, without the reasons that are listed; nothing without the option."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.getoption("--strict-skips"):
        return []
    lines = ALLOWED.read_text(encoding="utf-8").splitlines()
    allowed = [re.compile(line) for line in lines if line and not line.startswith("#")]
    places = {}
    for report in reporter.stats.get("skipped", []):
        path, line, reason = report.longrepr
        reason = reason.removeprefix("Skipped: ")
        if not any(pattern.fullmatch(reason) for pattern in allowed):
            places[f"{path}:{line}", reason] = None
    return list(places)
