"""kombu's integration tests of the Redis transport: their ``redis://`` becomes ours."""

from __future__ import annotations

import os
from typing import Any

import pytest
import redis
from kombu import Connection

from .environment import OURS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "env(name): kombu's choice of a server")
    if OURS:
        _rewrite()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> object:
    """Their client beside the connection asks it for its host, which is a whole URL after a ``+``
    (kombu's own rule for every ``a+b://``)."""
    if fixturedef.argname != "redis_client":
        return None
    client = redis.Redis(
        os.environ["REDIS_HOST"], int(os.environ["REDIS_6379_TCP"]), decode_responses=True
    )
    fixturedef.cached_result = (client, fixturedef.cache_key(request), None)
    return client


def ours(url: Any) -> Any:
    """A URL, several of them in a string or a list: those of Redis with ``cloche+`` before."""
    if isinstance(url, str):
        return ";".join(
            f"cloche+{one}" if one.startswith(("redis:", "rediss:", "sentinel:")) else one
            for one in url.split(";")
        )
    return [ours(one) for one in url] if isinstance(url, list | tuple) else url


def _rewrite() -> None:
    """As users change their URLs: in what they hand to ``kombu.Connection``."""
    connect, switch = Connection.__init__, Connection.switch

    def __init__(self: Connection, hostname: Any = "localhost", *args: Any, **options: Any) -> None:
        if "alternates" in options:
            options["alternates"] = ours(options["alternates"])
        connect(self, ours(hostname), *args, **options)

    Connection.__init__ = __init__
    Connection.switch = lambda self, url: switch(self, ours(url))
