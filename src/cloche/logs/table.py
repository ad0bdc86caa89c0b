"""The tables of the execution log, as migrations 0002 to 0004 made them (a test compares them).

On PostgreSQL ``cloche_log_records`` is partitioned by day, which is a range of ids, so that ``id``
alone is its key. On SQLite it is one table with a further column ``seq``, its rowid, and an FTS5
table ``cloche_log_records_text`` over the words of ``message`` (`cloche.plain.search_words`) that
the writer fills (a trigger deletes).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Double,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from cloche.database.types import Moment, RecordId

metadata = MetaData()


#: The table of records; on PostgreSQL its partitions are days.
RECORDS = "cloche_log_records"

log_records = Table(
    RECORDS,
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
        "cloche_log_records_run",
        "run_id",
        "id",
        postgresql_where=text("run_id IS NOT NULL"),
        sqlite_where=text("run_id IS NOT NULL"),
    ),
    Index(
        "cloche_log_records_task",
        "task_id",
        "id",
        postgresql_where=text("task_id IS NOT NULL"),
        sqlite_where=text("task_id IS NOT NULL"),
    ),
    Index(
        "cloche_log_records_errors",
        "id",
        postgresql_where=text("level >= 40"),
        sqlite_where=text("level >= 40"),
    ),
    # And on PostgreSQL cloche_log_records_text: gin (to_tsvector('simple', cloche_words(message))).
)

log_dead_letters = Table(
    "cloche_log_dead_letters",
    metadata,
    # The record's own id where it could be read, else one made from the payload's bytes, so that
    # a payload that is delivered twice is one dead letter.
    Column("id", RecordId, primary_key=True),
    Column("received", Moment, nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("cloche_log_dead_letters_received", "received"),
)
