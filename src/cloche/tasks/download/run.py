"""One run of the download task: a pipeline of named steps over one row."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, TaskPredicate

from cloche.database import Database
from cloche.errors import (
    ClocheError,
    DatabaseError,
    DownloadBrokenError,
    DownloadCancelledError,
)
from cloche.settings import Settings
from cloche.tasks.download.backends import Backend, choose_backend
from cloche.tasks.download.cache import Cache, Space, full_disk_told
from cloche.tasks.download.progress import Progress
from cloche.tasks.download.records import Download, DownloadState, Order, Stored
from cloche.tasks.download.repository import DownloadRepository
from cloche.tasks.egress import EgressGuard

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds between two looks at the transfer: progress is written at most that often.
_STEP = 0.25

#: Steps after which a row is written though nothing came: its sign of life, and how fast a
#: cancellation is seen.
_BEAT = 2

#: Longest Retry-After in seconds that is waited for; the broker's own redelivery of delayed
#: messages (visibility timeout) must stay above it.
LONGEST_WAIT = 1800.0


class Transfer(Generic[T]):
    """Runs ``work`` while the calling thread waits in short steps.

    A soft time limit is an exception that a signal handler raises in the main thread. In an
    event loop there it would hit whichever callback runs, and could get lost; in `wait` it
    cannot. Leaving the ``with`` block cancels what still runs and waits until it has ended.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[T] | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        self._thread.join()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most ``seconds``."""
        done, _ = concurrent.futures.wait([self._outcome], timeout=seconds)
        return bool(done)

    def result(self) -> T:
        """What it returned, or what it raised."""
        return self._outcome.result()

    def cancel(self) -> None:
        """Cancel it unless it has ended."""
        self._begun.wait()
        if self._loop and self._task and not self._outcome.done():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _run(self) -> None:
        try:
            self._outcome.set_result(asyncio.run(self._main()))
        except BaseException as error:  # noqa: BLE001 (handed to the waiting thread)
            self._outcome.set_exception(error)
        finally:
            self._begun.set()

    async def _main(self) -> T:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._work)
        self._begun.set()
        return await self._task


class DownloadRun:
    """What one delivery of the task does. Everything it needs is given to it."""

    def __init__(self, task: Task, id: str, settings: Settings, guard: EgressGuard) -> None:
        self._task = task
        self._id = id
        self._settings = settings
        self._guard = guard
        self._cache = Cache(settings.run_dir, settings.download.directory)
        self._catalogue = DownloadRepository(Database(settings))
        self._progress = Progress()
        self._began = time.monotonic()

    def __call__(self) -> dict[str, Any]:
        """Download it, or find that somebody did; the result of the task.

        Raises what Celery understands: `Retry`, `Ignore`, or the error of a failure.
        """
        row, order = self._catalogue.get(self._id), self._catalogue.order(self._id)
        if row is None or order is None or not row.state.active:
            return self._over(row)
        with self._failures_recorded(), full_disk_told(self._cache.root), self._alone_with(order):
            if self._catalogue.start(self._id) is None:
                return self._over(self._catalogue.get(self._id))
            return _result(self._fetched(order))

    def _over(self, row: Download | None) -> dict[str, Any]:
        """A delivery for a row that needs nothing any more."""
        if row is not None and row.state is DownloadState.DONE:
            return _result(row)
        if row is None or row.state is DownloadState.CANCELLED:
            self._mark_revoked()
        raise Ignore

    @contextmanager
    def _alone_with(self, order: Order) -> Iterator[None]:
        """Hold the URL and a slot of its host; without them the task comes back later."""
        url_lock = self._cache.url_lock(order.url)
        if url_lock is None:
            raise self._later(order)
        try:
            host = self._guard.check_url(order.url).host
            slot = self._cache.host_slot(host, self._settings.download.per_host)
            if slot is None:
                raise self._later(order)
            try:
                yield
            finally:
                slot.release()
        finally:
            url_lock.release()

    def _later(self, order: Order) -> Ignore:
        """Give the worker's slot back and send the task again, which is no retry of it."""
        request = self._task.request
        countdown = random.uniform(0.5, 1.5)  # noqa: S311 (spreads the load, no secret)
        again = self._task.signature_from_request(
            request, countdown=countdown, retries=request.retries
        )
        again.apply_async()
        log.debug("download %s waits: %s is busy", self._id, order.url)
        return Ignore()

    def _fetched(self, order: Order) -> Download:
        limits = self._settings.download
        space = Space(self._cache.root, reserve=limits.reserve, quota=limits.quota)
        backend = choose_backend(order, limits, self._guard, space)
        known = self._known(order)
        if known is not None and self._serves(order, known):
            return self._finish(known[0], cached=True, checked=known[1])
        stored = self._transferred(backend, order, known[0] if known else None)
        if stored is None and known is not None:
            return self._finish(known[0], cached=True, checked=time.time())
        if stored is None:
            raise DownloadBrokenError("The server answered 304 to an unconditional request.")
        with self._cache.content_lock(stored.sha256):
            backend.keep(stored, self._cache)
            return self._finish(stored, cached=False, checked=time.time())

    def _known(self, order: Order) -> tuple[Stored, float] | None:
        """The cached file of this URL, if it could answer this order."""
        found = self._catalogue.stored(order.url, order.backend)
        if found is None or found[0].size > order.max_size:
            return None
        if order.checksum not in (None, f"sha256:{found[0].sha256}"):
            return None
        return found if self._cache.object_path(found[0].sha256).is_file() else None

    def _serves(self, order: Order, known: tuple[Stored, float]) -> bool:
        age = time.time() - known[1]
        return not order.refresh and age <= self._settings.download.fresh_for.total_seconds()

    def _transferred(self, backend: Backend, order: Order, known: Stored | None) -> Stored | None:
        """Transfer in a thread, report and watch for a cancellation in this one."""
        partial = self._cache.partial_path(order.url)
        progress = self._progress
        work = backend.fetch(order, partial, progress, known)
        quiet, last = 0, -1
        with Transfer(work) as transfer:
            while not transfer.wait(_STEP):
                self._check_limit()
                quiet = quiet + 1 if progress.received == last else _BEAT
                if quiet >= _BEAT:
                    quiet, last = 0, progress.received
                    self._report()
        return transfer.result()

    def _check_limit(self) -> None:
        """The soft limit in pools that have no signals (threads, solo)."""
        limit = self._task.request.timelimit[1] if self._task.request.timelimit else None
        limit = limit or self._task.soft_time_limit
        if limit and time.monotonic() - self._began > limit:
            raise SoftTimeLimitExceeded(limit)

    def _report(self) -> None:
        """Write progress to the row and the result backend. A failure to do so harms nothing
        but the display; `DownloadCancelledError` when the row says stop.
        """
        now = self._progress
        received, total, rate = now.received, now.total, now.rate()
        try:
            goes_on = self._catalogue.progress(self._id, received, total, rate, now.restarts)
        except DatabaseError as error:
            log.warning("progress of download %s not written: %s", self._id, error.what)
            return
        if not goes_on:
            raise DownloadCancelledError("The download was cancelled.")
        self._announce({"received": received, "total": total, "rate": round(rate)})

    def _announce(self, meta: dict[str, Any]) -> None:
        try:
            self._task.update_state(state="PROGRESS", meta=meta)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # noqa: BLE001 (each result backend has errors of its own)
            log.warning("progress of download %s not announced: %r", self._id, error)

    def _finish(self, stored: Stored, *, cached: bool, checked: float) -> Download:
        done = self._catalogue.done(
            self._id, stored, cached=cached, checked=checked, restarts=self._progress.restarts
        )
        if done is None:
            raise DownloadCancelledError("The download was cancelled.")
        return done

    @contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        """Write to the row how the run ended, and tell Celery."""
        try:
            yield
        except TaskPredicate:  # Celery's own words: come back later, nothing to do
            raise
        except DownloadCancelledError:
            self._catalogue.cancelled(self._id)
            self._mark_revoked()
            raise Ignore from None
        except SoftTimeLimitExceeded:
            raise self._timed_out() from None
        except DownloadBrokenError as error:
            self._retry(error)
        except DatabaseError:
            raise  # the row cannot be written now; the task is tried again
        except Exception as error:
            text = str(error) if isinstance(error, ClocheError) else repr(error)
            self._catalogue.failed(self._id, text)
            log.debug("download %s failed", self._id, exc_info=True)
            raise

    def _timed_out(self) -> DownloadBrokenError:
        seconds = time.monotonic() - self._began
        error = DownloadBrokenError(
            f"The time limit was reached after {seconds:.0f} s.",
            why=f"{self._progress.received} bytes came until then, and are kept.",
            fix="Retry to continue, or raise families.download.soft_time_limit.",
        )
        self._catalogue.failed(self._id, str(error))
        return error

    def _retry(self, error: DownloadBrokenError) -> None:
        """Ask Celery to try again; raises in any case."""
        wait = max(self._task.default_retry_delay, error.retry_after or 0)
        limit = self._task.max_retries
        exhausted = limit is not None and self._task.request.retries >= limit
        if exhausted or wait > LONGEST_WAIT or self._task.request.called_directly:
            self._catalogue.failed(self._id, _final(error))
            raise error
        self._catalogue.wait(self._id, str(error))
        try:
            raise self._task.retry(exc=error, countdown=wait)
        except Reject as rejected:
            self._catalogue.failed(self._id, f"The retry could not be sent: {rejected.reason}")
            raise

    def _mark_revoked(self) -> None:
        self._task.backend.mark_as_revoked(
            self._task.request.id, reason="cancelled", request=self._task.request
        )


def _final(error: DownloadBrokenError) -> str:
    if error.retry_after is not None and error.retry_after > LONGEST_WAIT:
        return f"{error}\n  The server asks to wait {error.retry_after:.0f} s; retry then."
    return str(error)


def _result(download: Download) -> dict[str, Any]:
    names = ("id", "sha256", "size", "filename", "content_type", "cached")
    return {name: getattr(download, name) for name in names}
