"""The design that is copied from project to project: a buffer of 50, a task that starts an event
loop of its own, and an ORM row for each record.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import Celery
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from bench.apps import case
from bench.apps.logs_case import DATABASE, SQLITE
from cloche.logs.record import LEVELS, LogRecord, stamp
from cloche.logs.table import log_records

BATCH = 50
app = Celery("copied", broker=case.URL)
app.conf.task_default_queue = "logs"
app.conf.worker_prefetch_multiplier = 4
_buffer: list[dict[str, Any]] = []


class Base(DeclarativeBase):
    """What SQLAlchemy wants."""


class Row(Base):
    """The same table as Cloche's."""

    __table__ = log_records


def log(**given: Any) -> None:
    time, serial = stamp()
    record = LogRecord(time, serial, "info", "", None, "")
    given.update(id=str(record.id), time=record.time.isoformat(), level=LEVELS[given["level"]])
    _buffer.append(given)
    if len(_buffer) >= BATCH:
        finish()


def finish() -> None:
    if _buffer:
        write.delay(list(_buffer))
        _buffer.clear()


@app.task(name="copied.write", ignore_result=True)
def write(batch: list[dict[str, Any]]) -> None:
    if SQLITE:
        _write_plainly(batch)
    else:
        asyncio.run(_write(batch))


async def _write(batch: list[dict[str, Any]]) -> None:
    url = DATABASE.replace("postgresql:", "postgresql+asyncpg:", 1)
    engine = create_async_engine(url, poolclass=NullPool)
    async with AsyncSession(engine) as session:
        for one in batch:
            session.add(_row(one))
        await session.commit()
    await engine.dispose()


def _write_plainly(batch: list[dict[str, Any]]) -> None:
    engine = create_engine(DATABASE, poolclass=NullPool, connect_args={"timeout": 30})
    with Session(engine) as session:
        for one in batch:
            session.add(_row(one))
        session.commit()
    engine.dispose()


def _row(one: dict[str, Any]) -> Row:
    time = datetime.fromisoformat(one["time"])
    return Row(**{**one, "id": UUID(one["id"]), "time": time})
