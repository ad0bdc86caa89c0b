"""The suites of Django's Celery packages: Celery's own fixtures make their app, on our URL."""

from __future__ import annotations

from typing import Any

import pytest

from .environment import URL


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> object:
    if fixturedef.argname != "celery_parameters":
        return None
    parameters = {"broker": URL, "backend": URL}
    fixturedef.cached_result = (parameters, fixturedef.cache_key(request), None)
    return parameters


@pytest.fixture(autouse=True)
def _connected(request: Any) -> None:
    """Whatever a connection changes in Celery is changed when a test begins."""
    if "celery_app" in request.fixturenames:
        with request.getfixturevalue("celery_app").connection_for_write() as connection:
            connection.default_channel.close()
