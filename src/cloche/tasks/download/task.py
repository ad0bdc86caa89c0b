"""The task that downloads."""

from __future__ import annotations

from cloche.settings import Settings
from cloche.tasks.egress import EgressGuard

FETCH = "tasks.download.fetch"


def guard_of(settings: Settings) -> EgressGuard:
    """The guard of downloads."""
    return EgressGuard(settings.download.allow_networks, setting="download.allow_networks")
