"""What runs inside Celery's suite: a pytest plugin that chooses the pool and reports each test.

Its settings come from the environment (``Inside``); its reports are JSON lines, one per event,
so that the runner outside sees a hang, and keeps what was reported before a crash.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

PREFIX = "CLOCHE_PEER_"
CONFTEST = "t.integration.conftest"
PLAIN_TCP = "half-open cleanup path needs a plaintext TCP redis broker"


class RedisUrl(str):
    """A ``cloche+redis://`` URL that says it is Redis where the suite asks.

    The suite asks ``conf.result_backend.startswith("redis")`` before it runs what needs a Redis
    server, and skips those tests else. Ours talks to one, so that they must run.
    """

    __slots__ = ()

    def startswith(self, prefix: Any, *span: Any) -> bool:
        return super().startswith(prefix, *span) or str(self).removeprefix("cloche+").startswith(
            prefix, *span
        )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Inside(), "cloche-peer")


class Inside:
    """The hooks, with what the environment says."""

    def __init__(self) -> None:
        pool = os.environ[PREFIX + "POOL"]
        self.pool = "cloche.aio.pool:TaskPool" if pool == "asyncio" else pool
        self.timeout = float(os.environ[PREFIX + "TIMEOUT"])
        self.reruns = int(os.environ[PREFIX + "RERUNS"])
        wanted = json.loads(Path(os.environ[PREFIX + "WANTED"]).read_text())
        self.wanted = None if wanted is None else set(wanted)
        self.events = Path(os.environ[PREFIX + "EVENTS"])

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Before the test modules take the two URLs from the suite's conftest."""
        conftest = sys.modules[CONFTEST]
        for name in ("TEST_BROKER", "TEST_BACKEND"):
            setattr(conftest, name, RedisUrl(getattr(conftest, name)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> object:
        if fixturedef.argname != "celery_worker_pool":
            return None
        fixturedef.cached_result = (self.pool, fixturedef.cache_key(request), None)
        return self.pool

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.timeout(self.timeout, method="signal"), append=False)
            if item.get_closest_marker("flaky"):  # the suite's own mark, with 5 reruns
                item.add_marker(pytest.mark.flaky(reruns=self.reruns), append=False)
        _lift_skips(items)
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


def _lift_skips(items: list[pytest.Item]) -> None:
    """Run a whole file that is skipped where the URL's scheme is not exactly ``redis``.

    It cuts a plain TCP connection in half; ours is one too.
    """
    for module in {item.getparent(pytest.Module) for item in items}:
        if module is not None:
            module.own_markers[:] = [
                mark for mark in module.own_markers if mark.kwargs.get("reason") != PLAIN_TCP
            ]


def _why(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The traceback of what failed, the reason of what was skipped."""
    if report.passed:
        return None
    if isinstance(report.longrepr, Sequence) and not isinstance(report.longrepr, str):
        return str(report.longrepr[-1]).removeprefix("Skipped: ")
    return report.longreprtext
