"""The tables of the execution log, as migration 0002 made them (a test compares them).

On PostgreSQL ``log_records`` is partitioned by day, which is a range of ids, so that ``id`` alone
is its key. On SQLite it is one table with a further column ``seq``, its rowid, and an FTS5 table
``log_records_text`` over ``message`` that the writer fills (a trigger deletes).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from cloche.logs.record import micros, moment

metadata = MetaData()


class RecordId(TypeDecorator[UUID]):
    """A UUID: ``uuid`` on PostgreSQL, 16 bytes on SQLite. Both order it by its bytes."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind: TypeEngine[Any] = LargeBinary(16) if dialect.name == "sqlite" else Uuid()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> object:
        return value.bytes if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: UUID | bytes | None, dialect: Dialect) -> UUID | None:
        return UUID(bytes=value) if isinstance(value, bytes) else value


class Moment(TypeDecorator[datetime]):
    """A UTC time: ``timestamptz`` on PostgreSQL, µs since 1970 on SQLite."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind: TypeEngine[Any] = (
            BigInteger() if dialect.name == "sqlite" else DateTime(timezone=True)
        )
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> object:
        return micros(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | int | None, _: Dialect) -> datetime | None:
        return moment(value) if isinstance(value, int) else value


log_records = Table(
    "log_records",
    metadata,
    Column("id", RecordId, primary_key=True),
    Column("time", Moment, nullable=False),
    # 10 debug, 20 info, 30 warning, 40 error, 50 critical, as in logging.
    Column("level", SmallInteger, nullable=False),
    Column("category", Text, nullable=False),
    Column("step", Text),
    Column("message", Text, nullable=False),
    Column("task_id", Text),
    Column("run_id", Text),
    Column("concept_id", Text),
    Column("agent", Text),
    Column("details", JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")),
    Column("duration_ms", Double),
    Index(
        "log_records_run",
        "run_id",
        "id",
        postgresql_where=text("run_id IS NOT NULL"),
        sqlite_where=text("run_id IS NOT NULL"),
    ),
    Index(
        "log_records_task",
        "task_id",
        "id",
        postgresql_where=text("task_id IS NOT NULL"),
        sqlite_where=text("task_id IS NOT NULL"),
    ),
    Index(
        "log_records_errors",
        "id",
        postgresql_where=text("level >= 40"),
        sqlite_where=text("level >= 40"),
    ),
    # And on PostgreSQL log_records_text: gin (to_tsvector('simple', message)).
)

log_dead_letters = Table(
    "log_dead_letters",
    metadata,
    # The record's own id where it could be read, else one made from the payload's bytes, so that
    # a payload that is delivered twice is one dead letter.
    Column("id", RecordId, primary_key=True),
    Column("received", Moment, nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("log_dead_letters_received", "received"),
)
