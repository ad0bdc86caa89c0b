"""The result backend of ``cloche+redis://`` URLs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Names by which a configuration written for an earlier version may know the backend.
_EARLIER = frozenset({"RedisBackend", "SentinelBackend", "backend"})


def __getattr__(name: str) -> Any:
    if name in _EARLIER:
        return getattr(import_module("cloche.broker.results.redis_backend"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
