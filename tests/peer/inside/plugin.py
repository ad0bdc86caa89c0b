"""A pytest plugin that chooses tests and reports each.

Its settings come from the environment; its reports are JSON lines, one per event, so that the
runner outside sees a hang, and keeps what was reported before a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from .environment import PREFIX


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reporter(), "cloche-peer")


class Reporter:
    """The hooks, with what the environment says."""

    def __init__(self) -> None:
        self.timeout = float(os.environ[PREFIX + "TIMEOUT"])
        self.reruns = int(os.environ[PREFIX + "RERUNS"])
        wanted = json.loads(Path(os.environ[PREFIX + "WANTED"]).read_text())
        self.wanted = None if wanted is None else set(wanted)
        self.events = Path(os.environ[PREFIX + "EVENTS"])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.timeout(self.timeout, method="signal"), append=False)
            if item.get_closest_marker("flaky"):  # the suite's own mark, with 5 reruns
                item.add_marker(pytest.mark.flaky(reruns=self.reruns), append=False)
        if self.wanted is not None:
            items[:] = [item for item in items if item.nodeid in self.wanted]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._tell(collected=[item.nodeid for item in session.items])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell(test=nodeid, phase="start")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._tell(
            test=report.nodeid,
            phase=report.when,
            outcome=report.outcome,
            expected=getattr(report, "wasxfail", None),
            seconds=round(report.duration, 2),
            why=_why(report),
        )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._tell(finished=nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell(test=report.nodeid, phase="collect", outcome="failed", why=_why(report))
        elif report.skipped:
            self._tell(test=report.nodeid, phase="collect", outcome="skipped", why=_why(report))

    def _tell(self, **event: object) -> None:
        with self.events.open("a") as events:
            events.write(json.dumps(event) + "\n")


def _why(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The traceback of what failed, the reason of what was skipped."""
    if report.passed:
        return None
    if isinstance(report.longrepr, Sequence) and not isinstance(report.longrepr, str):
        return str(report.longrepr[-1]).removeprefix("Skipped: ")
    return report.longreprtext
