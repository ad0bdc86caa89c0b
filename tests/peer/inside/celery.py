"""Celery's integration suite: the pool of its workers, and what asks whether the URL is Redis."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from .environment import POOL

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Before the test modules take the two URLs from the suite's conftest."""
    conftest = sys.modules[CONFTEST]
    for name in ("TEST_BROKER", "TEST_BACKEND"):
        setattr(conftest, name, RedisUrl(getattr(conftest, name)))


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> object:
    if fixturedef.argname != "celery_worker_pool":
        return None
    fixturedef.cached_result = (POOL, fixturedef.cache_key(request), None)
    return POOL


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run a whole file that is skipped where the URL's scheme is not exactly ``redis``.

    It cuts a plain TCP connection in half; ours is one too.
    """
    for module in {item.getparent(pytest.Module) for item in items}:
        if module is not None:
            module.own_markers[:] = [
                mark for mark in module.own_markers if mark.kwargs.get("reason") != PLAIN_TCP
            ]
