"""What is known of a broker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """A broker that was used a moment ago.

    ``url`` is masked. ``server`` is product and version (``valkey 9.1.2``).
    ``persistent`` tells whether messages survive a stop of the server, None where it did
    not say; ``persistence`` tells how (``AOF everysec``). ``policy`` is Redis's
    ``maxmemory-policy``, ``role`` ``master`` or empty. ``took`` is in seconds.
    """

    url: str
    server: str
    persistent: bool | None
    persistence: str
    policy: str
    role: str
    took: float
