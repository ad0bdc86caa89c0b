"""What was observed, kept on a server of its own, a list per program."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import redis

from tests.differential.values import plain

_local = threading.local()


def client() -> redis.Redis:
    """A connection of this thread and process."""
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid = os.getpid()
        _local.client = redis.Redis.from_url(os.environ["DIFFERENTIAL_LEDGER"], socket_timeout=None)
    found: redis.Redis = _local.client
    return found


def note(program: str, kind: str, **facts: Any) -> None:
    """Append what ``kind`` of observation of ``program`` says, as JSON."""
    client().rpush(f"seen:{program}", json.dumps({"k": kind, **plain(facts)}, default=repr))
