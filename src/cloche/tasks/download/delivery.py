"""What the worker knows of a download that its pool process can no longer tell.

A pool process that is killed, or that the hard time limit kills, writes nothing more; the
worker's main process does it instead. Celery names this class on the task (``Task.Request``)
and calls it there (celery.worker.request, 5.7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.utils.log import get_logger

from cloche.broker.request import Request
from cloche.database import Database
from cloche.errors import DatabaseError
from cloche.settings.of_app import settings_of
from cloche.tasks.download.repository import DownloadRepository

log = get_logger(__name__)

_LOST = "Its process was killed.\n  why: {}"
_AGAIN = "\n  It is tried again, from where it stopped."
_GIVEN_UP = "\n  fix: Retry to continue. Out of memory? The kernel's log would say so (dmesg)."
_TOO_LONG = (
    "The hard time limit was reached after {:g} s.\n"
    "  why: The process no longer reacted to the soft one, and was killed.\n"
    "  fix: Retry to continue, or raise families.download.time_limit."
)


class Delivery(Request):
    """A message of the fetch task in the hands of a worker."""

    #: Whether the message will be delivered again.
    _again = False

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """The hard limit ends the download before the process is killed."""
        if not soft:
            self._write(lambda rows, id: rows.failed(id, _TOO_LONG.format(timeout)))
        super().on_timeout(soft, timeout)

    def on_failure(
        self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """A lost process: the row waits for the next attempt, or fails with the last one.

        It is written before the message is sent again, which may then run at once.
        """
        lost = _lost(exc_info)
        if lost is None:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        text = _LOST.format(lost)
        self._write(lambda rows, id: rows.wait(id, text + _AGAIN))
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        finally:
            if not self._again:
                self._write(lambda rows, id: rows.failed(id, text + _GIVEN_UP))

    def reject(self, requeue: bool = False) -> None:
        """Note that it comes back."""
        super().reject(requeue)
        self._again = requeue and not self.buried

    def _retry_worker_lost(self, exc: BaseException, exc_info: ExceptionInfo) -> bool:
        self._again = super()._retry_worker_lost(exc, exc_info)
        return bool(self._again)

    def _write(self, change: Callable[[DownloadRepository, str], object]) -> None:
        """Change the row; without the database it stays as it is, and shows as stalled."""
        database = Database(settings_of(self.app))
        try:
            change(DownloadRepository(database), self.args[0])
        except DatabaseError as error:
            log.warning("the end of download %s is not recorded: %s", self.args[0], error.what)
        finally:
            database.close()


def _lost(exc_info: ExceptionInfo) -> str | None:
    """How the process ended, if that is why the task did."""
    error = exc_info.exception
    if isinstance(error, ExceptionWithTraceback):
        error = error.exc
    if isinstance(error, WorkerLostError):
        return str(error)
    # What billiard reports where the process exits by itself in the middle of a task.
    return f"It exited: {error!r}" if isinstance(error, SystemExit) else None
