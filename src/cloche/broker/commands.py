"""One command to the server, its reply as it came: redis-py's typed methods differ by protocol."""

from __future__ import annotations

from typing import Any

import redis


def send(client: redis.Redis, *words: str | bytes | float) -> Any:
    """Send it and return the reply. Raises what redis-py raises."""
    return client.execute_command(*words)  # type: ignore[no-untyped-call]
