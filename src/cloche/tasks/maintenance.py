"""The ``maintenance`` family: what keeps a system from growing, on a queue of its own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from celery import Task, shared_task

from cloche.database import Database
from cloche.errors import DatabaseError
from cloche.logs.retention import expire
from cloche.settings.of_app import settings_of

EXPIRE_LOGS = "cloche.maintenance.expire_logs"


@shared_task(bind=True, name=EXPIRE_LOGS, acks_late=True)
def expire_logs(self: Task, dry_run: bool = False) -> dict[str, Any]:
    """Remove execution logs older than ``logs.keep``; safe to deliver twice.

    Returns ``before`` (ISO 8601), ``days`` (partitions), ``day_rows``, ``rows``,
    ``dead_letters`` and ``dry_run``.
    """
    settings = settings_of(self.app)
    database = Database(settings)
    try:
        database.migrate()
        done = expire(database, settings.logs.keep, dry_run=dry_run)
    except DatabaseError as error:
        raise self.retry(exc=error) from error
    finally:
        database.close()
    return {**asdict(done), "before": done.before.isoformat()}
