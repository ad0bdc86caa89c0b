"""Downloads as people and programs ask for them: the one facade of web, CLI and code."""

from __future__ import annotations

import builtins
import importlib.util
import time
from pathlib import Path

from celery import Celery
from kombu.exceptions import OperationalError

from cloche.database import Database
from cloche.errors import (
    BrokerError,
    BrokerFault,
    DownloadError,
    DownloadRefusedError,
    ExtraMissingError,
)
from cloche.settings import Settings
from cloche.tasks.download.cache import Cache
from cloche.tasks.download.filename import sanitise
from cloche.tasks.download.part import Checksum
from cloche.tasks.download.records import Download, DownloadState, Order
from cloche.tasks.download.repository import DownloadRepository
from cloche.tasks.download.task import FETCH, guard_of

_BACKENDS = ("http", "yt-dlp", "auto")


class Downloads:
    """Requests for files, from the first wish to the file on disk. Safe to share by threads.

    Migrates the database when made. All methods raise `DatabaseError` when it cannot be used.
    """

    def __init__(self, app: Celery, settings: Settings, database: Database | None = None) -> None:
        self._app = app
        self._settings = settings.download
        self._guard = guard_of(settings)
        self._cache = Cache(settings.run_dir, settings.download.directory)
        database = database or Database(settings)
        database.migrate()
        self._catalogue = DownloadRepository(database)
        # Until then the broker may still give the task of a dead worker to another one.
        hard = settings.families["download"].time_limit or 0
        self._lost_after = max(hard, settings.broker.redelivery) + 60

    def request(
        self,
        url: str,
        *,
        checksum: str | None = None,
        max_size: int | None = None,
        filename: str | None = None,
        backend: str | None = None,
        refresh: bool = False,
    ) -> Download:
        """Ask for the file behind ``url``; returns at once.

        ``checksum`` is written ``sha256:…`` (or md5, sha1, sha512); ``max_size`` in bytes,
        within the setting; ``refresh`` asks the server even if the cached file is fresh.
        The same request while one is active joins it; a fresh cached file is answered with
        a download that is done. Raises `DownloadError` when the answer is no already,
        `BrokerError` when the task cannot be sent.
        """
        order = self._order(url, checksum, max_size, filename, backend, refresh)
        cached = None if refresh else self._from_cache(order)
        if cached is not None:
            return cached
        download, new = self._catalogue.add(order)
        if new:
            self._send(download)
        elif download.stalled:
            return self.retry(download.id)
        return download

    def get(self, id: str) -> Download | None:
        """The download of that id."""
        if not _is_id(id):
            return None
        download = self._catalogue.get(id)
        if download is not None and self._is_lost(download):
            self._catalogue.fail_lost(self._lost_after)
            return self._catalogue.get(id)
        return download

    def cancel(self, id: str) -> Download:
        """Cancel it: at once if it waits, within a second if it runs; not if it is over.

        What came is kept for `retry`, until it is swept or removed.
        """
        download = _known(self._catalogue.cancel(id) if _is_id(id) else None, id)
        if download.state is DownloadState.CANCELLED:
            self._revoke(download)
        return download

    def retry(self, id: str) -> Download:
        """Try a failed, cancelled or stalled download again; others are returned unchanged."""
        download = self._catalogue.requeue(id) if _is_id(id) else None
        if download is None:
            return _known(self.get(id), id)
        if download.state is DownloadState.QUEUED and download.id == id:
            self._send(download)
        return download

    def remove(self, id: str) -> Download:
        """Forget a download that is over, and its file unless another download has the same.

        Returns what it was. Raises `DownloadRefusedError` while it is active.
        """
        download = _known(self.get(id), id)
        if download.sha256 is None:
            removed = self._removed(id)
            if download.url not in self._catalogue.active_urls():
                self._cache.discard_partial(download.url)
            return removed
        with self._cache.content_lock(download.sha256):
            removed = self._removed(id)
            if not self._catalogue.uses(download.sha256):
                self._cache.drop(download.sha256)
        return removed

    def path(self, download: Download) -> Path:
        """The file of a finished download. Raises `DownloadError` if there is none."""
        if download.state is DownloadState.DONE and download.sha256:
            path = self._cache.object_path(download.sha256)
            if path.is_file():
                return path
            raise DownloadError(
                "The file of this download is gone.",
                why="It was deleted from the cache.",
                fix="Ask for its URL again.",
            )
        raise DownloadError(
            "This download has no file.", why=download.error or f"It is {download.state}."
        )

    def sweep(self) -> int:
        """Fail downloads whose worker is lost, remove unfinished files nobody waits for.

        Returns how many bytes that freed.
        """
        self._catalogue.fail_lost(self._lost_after)
        return self._cache.sweep(self._catalogue.active_urls())

    def list(
        self, limit: int = 50, before: float | None = None, state: DownloadState | None = None
    ) -> builtins.list[Download]:
        """The newest first; ``before`` is the ``created`` of the last one already seen."""
        page = self._catalogue.page(limit, before, state)
        if any(map(self._is_lost, page)):
            self._catalogue.fail_lost(self._lost_after)
            return self._catalogue.page(limit, before, state)
        return page

    def _is_lost(self, download: Download) -> bool:
        return download.stalled and download.updated < time.time() - self._lost_after

    def _order(
        self,
        url: str,
        checksum: str | None,
        max_size: int | None,
        filename: str | None,
        backend: str | None,
        refresh: bool,
    ) -> Order:
        checked = self._guard.check_url(url.strip())
        backend = backend or self._settings.backend
        _check_backend(backend)
        return Order(
            url=str(checked.copy_with(fragment=None)),
            checksum=str(Checksum.parse(checksum)) if checksum else None,
            max_size=self._cap(max_size),
            filename=sanitise(filename) if filename else None,
            backend=backend,
            refresh=refresh,
        )

    def _cap(self, asked: int | None) -> int:
        limit = self._settings.max_size
        if asked is None:
            return limit
        if 1 <= asked <= limit:
            return asked
        raise DownloadRefusedError(
            f"max_size cannot be {asked} bytes.",
            why=f"It must be from 1 to {limit} (the setting download.max_size).",
            fix="Ask for less, or raise the setting.",
        )

    def _from_cache(self, order: Order) -> Download | None:
        found = self._catalogue.stored(order.url, order.backend)
        if found is None:
            return None
        stored, checked = found
        if time.time() - checked > self._settings.fresh_for.total_seconds():
            return None
        if order.checksum not in (None, f"sha256:{stored.sha256}"):
            return None  # another algorithm takes reading the file: the task's work
        if stored.size > order.max_size:
            return None
        with self._cache.content_lock(stored.sha256):
            if not self._cache.object_path(stored.sha256).is_file():
                return None
            return self._catalogue.add_cached(order, stored, checked)

    def _send(self, download: Download) -> None:
        try:
            # A publisher that expects a result makes the Redis result backend subscribe to it:
            # a channel per download, never left, and 20 s of silence when Redis is down. Only
            # the message, not this process, asks for a result.
            self._app.tasks[FETCH].apply_async(
                (download.id,),
                task_id=download.task_id,
                ignore_result=True,
                headers={"ignore_result": False},
            )
        except Exception as error:
            reason = f"The task could not be sent: {error}"
            self._catalogue.failed(download.id, reason)
            if not isinstance(error, OperationalError):
                raise
            raise BrokerError(
                "The download could not be queued.",
                fault=BrokerFault.OTHER,
                why=str(error),
                fix="Ask again once the broker answers.",
            ) from error

    def _revoke(self, download: Download) -> None:
        """Tell workers that hold the message; without the broker its task will see the row."""
        try:
            self._app.control.revoke(download.task_id)
        except OperationalError:
            return

    def _removed(self, id: str) -> Download:
        removed = self._catalogue.remove(id)
        if removed is None:
            raise DownloadRefusedError(
                "An active download cannot be removed.", fix="Cancel it first."
            )
        return removed


def _is_id(id: str) -> bool:
    """Whether it could be one: databases disagree about what else they may be asked for."""
    return len(id) <= 64 and id.isascii() and id.isprintable()


def _known(download: Download | None, id: str) -> Download:
    if download is None:
        raise DownloadRefusedError(f"There is no download {id[:64]!r}.")
    return download


def _check_backend(backend: str) -> None:
    if backend not in _BACKENDS:
        raise DownloadRefusedError(
            f"There is no download backend {backend[:64]!r}.", fix=f"Use {', '.join(_BACKENDS)}."
        )
    if backend == "yt-dlp" and importlib.util.find_spec("yt_dlp") is None:
        raise ExtraMissingError(
            "The yt-dlp backend is not installed.", fix="pip install 'cloche[yt-dlp]'"
        )
