"""The list of downloads: one row per request, in the database."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from cloche.database import Database
from cloche.tasks.download.records import (
    ACTIVE,
    STALL,
    Download,
    DownloadState,
    Order,
    Stored,
)
from cloche.tasks.download.table import downloads, key

_PUBLIC = [downloads.c[name] for name in Download.__dataclass_fields__ if name in downloads.c]


class DownloadRepository:
    """Reads and changes rows; each change is one statement that checks what it changes.

    Raises `DatabaseError`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # Reading

    def get(self, id: str) -> Download | None:
        """The download of that id."""
        with self._database.read() as connection:
            return _one(connection, id)

    def page(
        self, limit: int = 50, before: float | None = None, state: DownloadState | None = None
    ) -> list[Download]:
        """The newest first; ``before`` is a ``created`` time: the next page starts there."""
        query = select(*_PUBLIC).order_by(downloads.c.created.desc(), downloads.c.id.desc())
        if before is not None:
            query = query.where(downloads.c.created < before)
        if state is not None:
            query = query.where(downloads.c.state == state)
        with self._database.read() as connection:
            return [_download(row) for row in connection.execute(query.limit(limit)).mappings()]

    def order(self, id: str) -> Order | None:
        """What the request of that id asked for."""
        query = select(downloads).where(downloads.c.id == id)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return (
            None
            if row is None
            else Order(
                url=row["url"],
                checksum=row["checksum"],
                max_size=row["max_size"],
                filename=row["wanted_name"],
                backend=row["backend"],
                refresh=row["refresh"],
            )
        )

    def stored(self, url: str, backend: str) -> tuple[Stored, float] | None:
        """The file last had from ``url``, and when its server last confirmed it."""
        query = (
            select(downloads)
            .where(
                downloads.c.url_key == key(url),
                downloads.c.checked.is_not(None),
                downloads.c.backend == backend,
                downloads.c.state == DownloadState.DONE,
            )
            .order_by(downloads.c.checked.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        names = Stored.__dataclass_fields__
        return Stored(**{name: row[name] for name in names}), row["checked"]

    def uses(self, sha256: str) -> int:
        """How many rows name that content."""
        query = select(func.count()).where(downloads.c.sha256 == sha256)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def active_urls(self) -> set[str]:
        """The URLs of all downloads that are not over."""
        query = select(downloads.c.url).where(downloads.c.state.in_(ACTIVE))
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    # Requests

    def add(self, order: Order) -> tuple[Download, bool]:
        """A new queued row, or the active one that asks for the same: (row, whether new)."""
        while True:
            try:
                with self._database.write() as connection:
                    return _added(connection, _new_row(order)), True
            except IntegrityError:
                existing = self._active(order)
                if existing is not None:  # else it ended just now
                    return existing, False

    def _active(self, order: Order) -> Download | None:
        query = select(*_PUBLIC).where(downloads.c.active_key == _active_key(order))
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else _download(row)

    def add_cached(self, order: Order, stored: Stored, checked: float) -> Download:
        """A row that is done at once with a file of the cache."""
        now = time.time()
        row = (
            _new_row(order)
            | _file(stored)
            | {
                "state": DownloadState.DONE,
                "active_key": None,
                "cached": True,
                "checked": checked,
                "finished": now,
            }
        )
        with self._database.write() as connection:
            return _added(connection, row)

    def requeue(self, id: str) -> Download | None:
        """Queue a row that is over or stalled again, under a new task id.

        None if there is no such row, or if it is done or still going on.
        """
        order = self.order(id)
        if order is None:
            return None
        values = {
            "state": DownloadState.QUEUED,
            "active_key": _active_key(order),
            "task_id": str(uuid.uuid4()),
            "cancel_requested": False,
            "error": None,
            "finished": None,
            "rate": 0.0,
        }
        over = downloads.c.state.in_([DownloadState.FAILED, DownloadState.CANCELLED])
        try:
            return self._change(id, or_(over, _stalled()), values)
        except IntegrityError:
            return self._active(order)

    def cancel(self, id: str) -> Download | None:
        """Cancel what waits, ask what runs to stop; leave what is over. None: no such row."""
        waiting = downloads.c.state.in_([DownloadState.QUEUED, DownloadState.RETRYING])
        now_over = _over(DownloadState.CANCELLED)
        running = downloads.c.state == DownloadState.RUNNING
        return (
            self._change(id, or_(waiting, _stalled()), now_over)
            or self._change(id, running, {"cancel_requested": True}, beat=False)
            or self.get(id)
        )

    def fail_lost(self, age: float) -> int:
        """Fail running rows without a sign of life for ``age`` seconds; how many there were."""
        values = _over(DownloadState.FAILED) | {
            "error": "Its worker ended, and no other took it over.\n  fix: Retry to continue."
        }
        lost = and_(
            downloads.c.state == DownloadState.RUNNING, downloads.c.updated < time.time() - age
        )
        with self._database.write() as connection:
            return connection.execute(update(downloads).where(lost).values(values)).rowcount

    def remove(self, id: str) -> Download | None:
        """Delete the row of a download that is over; what it was, or None if it is active."""
        with self._database.write() as connection:
            found = _one(connection, id)
            if found is None or found.state.active:
                return None
            connection.execute(downloads.delete().where(downloads.c.id == id))
            return found

    # The task's side

    def start(self, id: str) -> Download | None:
        """The task begins (again); None when the row is over, or gone."""
        values = {
            "state": DownloadState.RUNNING,
            "started": func.coalesce(downloads.c.started, time.time()),
            "attempts": downloads.c.attempts + 1,
            "error": None,
        }
        return self._change(id, downloads.c.state.in_(ACTIVE), values)

    def progress(
        self, id: str, received: int, total: int | None, rate: float, restarts: int
    ) -> bool:
        """Write how far a running download is; whether it should go on.

        It should not when somebody asked to cancel it, or when its row is no longer running.
        """
        statement = (
            update(downloads)
            .where(downloads.c.id == id, downloads.c.state == DownloadState.RUNNING)
            .values(
                received=received, total=total, rate=rate, restarts=restarts, updated=time.time()
            )
            .returning(downloads.c.cancel_requested)
        )
        with self._database.write() as connection:
            cancel = connection.execute(statement).scalar_one_or_none()
        return cancel is not None and not cancel

    def wait(self, id: str, error: str | None = None) -> Download | None:
        """Running no longer: it will be tried again, after ``error`` or for want of a slot."""
        state = DownloadState.QUEUED if error is None else DownloadState.RETRYING
        values = {"state": state, "error": error, "rate": 0.0}
        return self._change(id, downloads.c.state == DownloadState.RUNNING, values)

    def done(
        self, id: str, stored: Stored, *, cached: bool, checked: float, restarts: int = 0
    ) -> Download | None:
        """The file is in the cache. None when the row was cancelled or removed meanwhile."""
        values = _over(DownloadState.DONE) | _file(stored)
        values |= {"cached": cached, "checked": checked, "restarts": restarts, "error": None}
        return self._change(id, downloads.c.state == DownloadState.RUNNING, values)

    def failed(self, id: str, error: str) -> Download | None:
        values = _over(DownloadState.FAILED) | {"error": error}
        return self._change(id, downloads.c.state.in_(ACTIVE), values)

    def cancelled(self, id: str) -> Download | None:
        """The task stopped because it was asked to."""
        return self._change(id, downloads.c.state.in_(ACTIVE), _over(DownloadState.CANCELLED))

    def _change(
        self, id: str, condition: Any, values: Mapping[str, Any], *, beat: bool = True
    ) -> Download | None:
        """Set ``values`` where ``condition`` holds; the row after it, None if it did not."""
        stamped = {**values, "updated": time.time()} if beat else values
        statement = (
            update(downloads)
            .where(downloads.c.id == id, condition)
            .values(stamped)
            .returning(*_PUBLIC)
        )
        with self._database.write() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else _download(row)


def _stalled() -> Any:
    return and_(
        downloads.c.state == DownloadState.RUNNING, downloads.c.updated < time.time() - STALL
    )


def _active_key(order: Order) -> str:
    return key(order.url, order.checksum, order.max_size, order.filename, order.backend)


def _new_row(order: Order) -> dict[str, Any]:
    now = time.time()
    return {
        "id": str(uuid.uuid4()),
        "url": order.url,
        "url_key": key(order.url),
        "checksum": order.checksum,
        "max_size": order.max_size,
        "wanted_name": order.filename,
        "refresh": order.refresh,
        "backend": order.backend,
        "active_key": _active_key(order),
        "task_id": str(uuid.uuid4()),
        "state": DownloadState.QUEUED,
        "cancel_requested": False,
        "received": 0,
        "rate": 0.0,
        "attempts": 0,
        "restarts": 0,
        "cached": False,
        "created": now,
        "updated": now,
    }


def _over(state: DownloadState) -> dict[str, Any]:
    return {"state": state, "active_key": None, "finished": time.time(), "rate": 0.0}


def _file(stored: Stored) -> dict[str, Any]:
    return {
        "sha256": stored.sha256,
        "size": stored.size,
        "received": stored.size,
        "total": stored.size,
        "filename": stored.filename,
        "content_type": stored.content_type,
        "etag": stored.etag,
        "last_modified": stored.last_modified,
    }


def _one(connection: Connection, id: str) -> Download | None:
    query = select(*_PUBLIC).where(downloads.c.id == id)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _download(row)


def _added(connection: Connection, row: dict[str, Any]) -> Download:
    statement = insert(downloads).values(row).returning(*_PUBLIC)
    return _download(connection.execute(statement).mappings().one())


def _download(row: RowMapping) -> Download:
    state = DownloadState(row["state"])
    stalled = state is DownloadState.RUNNING and row["updated"] < time.time() - STALL
    return Download(**{**row, "state": state, "stalled": stalled})
