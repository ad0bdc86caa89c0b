"""Column types that are one thing in Python and another in each database."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Dialect, LargeBinary, TypeDecorator, Uuid
from sqlalchemy.types import TypeEngine

from cloche.timestamps import micros, moment


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
