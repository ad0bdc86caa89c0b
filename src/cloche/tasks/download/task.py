"""The Celery task of this family; what it does is `DownloadRun`."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task

from cloche.errors import DatabaseError, DownloadError
from cloche.settings import Settings
from cloche.settings.of_app import settings_of
from cloche.tasks.download.run import DownloadRun
from cloche.tasks.egress import EgressGuard

FETCH = "cloche.download.fetch"


def guard_of(settings: Settings) -> EgressGuard:
    return EgressGuard(settings.download.allow_networks, setting="download.allow_networks")


# Named, not imported: only workers need it, and it brings Celery's worker with it.
# A failure that was foreseen is one line of the worker's log; its row says why.
@shared_task(
    bind=True,
    name=FETCH,
    acks_late=True,
    throws=(DownloadError, DatabaseError),
    Request=f"{__package__}.delivery:Delivery",
)
def fetch(self: Task, id: str) -> dict[str, Any]:
    """Download what the row ``id`` asks for; safe to deliver twice.

    Returns id, sha256, size, filename, content_type and cached.
    """
    settings = settings_of(self.app)
    try:
        return DownloadRun(self, id, settings, guard_of(settings))()
    except DatabaseError as error:
        raise self.retry(exc=error) from error
