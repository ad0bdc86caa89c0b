"""``python -m bench log-queries``: questions to an execution log of ten million records."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from bench.figures import percentile
from bench.run import machine
from cloche.database import Database
from cloche.database.partitions import name_of
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.logs.read.tail import RecordTail, look
from cloche.logs.retention import expire
from cloche.logs.table import RECORDS
from cloche.settings import Settings
from cloche.testing import PostgresProcess
from cloche.timestamps import first_id

#: Records of a run, and runs at the same time.
RUN, ABREAST = 200, 100
#: What PostgreSQL gets here; its defaults are for a tenth of the rows.
CONFIG = {"shared_buffers": "1GB", "maintenance_work_mem": "512MB", "max_wal_size": "8GB"}
_TEXT = "USING gin (to_tsvector('simple', cloche_words(message)))"
console = Console(highlight=False)

_FILL = """
INSERT INTO {table} SELECT
  (lpad(to_hex(ms), 12, '0') || '7' || substr(h, 1, 3) || '8' || substr(h, 4, 15))::uuid,
  to_timestamp(ms / 1000.0), level,
  (ARRAY['workflow', 'llm', 'http', 'db', 'export'])[1 + (i / 3) % 5], step,
  CASE WHEN level >= 40 THEN
    'connection to 10.0.' || i % 200 || '.' || i % 250 || ':5432 refused after ' || i % 7
    || ' tries (request ' || substr(h, 1, 8) || ')'
  ELSE (ARRAY['fetched page', 'asked the model for', 'stored chapter', 'ranked candidates of',
              'validated outline of', 'waited for a slot of'])[1 + i % 6]
    || ' ' || i % 997 || ' for order-' || lpad(({day} * 10000000 + i)::text, 9, '0') || ' by '
    || (ARRAY['curriculum architect', 'concept writer', 'reviewer', 'finder'])[1 + (i / 7) % 4]
    || ' in ' || i % 331 || ' ms' END,
  md5('task' || run), 'run-' || run, CASE WHEN i % 3 = 0 THEN 'concept-' || i % 50 END,
  (ARRAY['architect', 'writer', 'reviewer', 'finder'])[1 + (i / 7) % 4],
  CASE WHEN i % 4 = 0 THEN jsonb_build_object('tokens', i % 4000, 'model', 'm-' || i % 5) END,
  CASE WHEN i % 5 = 0 THEN i % 3000 + 0.5 END
FROM (
  SELECT i, {start} + i::bigint * 86400000 / {rows} AS ms, md5({day} || '-' || i) AS h,
    {day} * 1000000 + i / {block} * {abreast} + i % {abreast} AS run,
    (CASE WHEN i % 97 = 0 THEN 40 WHEN i % 31 = 0 THEN 30 WHEN i % 5 = 0 THEN 10
          ELSE 20 END)::smallint AS level,
    (ARRAY['plan', 'plan/outline', 'write', 'write/draft', 'write/review', 'publish'])
      [1 + i / 500 % 6] AS step
  FROM generate_series(0, {rows} - 1) AS i
) AS made
"""


@dataclass(frozen=True)
class Answer:
    """How long a question took, milliseconds; ``found`` of the last time."""

    question: str
    asked: int
    p50: float
    p95: float
    slowest: float
    found: int


@dataclass(frozen=True)
class Log:
    """A filled log: ``days`` of ``rows`` records each, the last one ends now."""

    database: Database
    days: int
    rows: int
    first: datetime

    def run(self) -> str:
        """Any run."""
        block = random.randrange(max(1, self.rows // (RUN * ABREAST)))
        day = random.randrange(self.days)
        return f"run-{day * 1_000_000 + block * ABREAST + random.randrange(ABREAST)}"

    def order(self) -> str:
        """A word that stands in one message."""
        day, number = random.randrange(self.days), random.randrange(self.rows)
        number -= number % 97 == 0
        return f"order-{day * 10_000_000 + max(number, 1):09d}"


@click.command()
@click.option("--rows", default=10_000_000, show_default=True, help="Records in all.")
@click.option(
    "--days",
    default=10,
    show_default=True,
    type=click.IntRange(3),  # one leaves, two are filled anew
    help="Days they are spread over.",
)
@click.option("--asks", default=40, show_default=True, help="Times each question is asked.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Where figures go.")
def log_queries(rows: int, days: int, asks: int, out: Path | None) -> None:
    """Fill a PostgreSQL with execution logs and time the questions of dashboard and CLI."""
    with filled(days, rows // days) as log:
        answers = [*ask(log, asks), *without_default(log, asks)]
        leaving = retention(log)
        loads = insertion(log)
    table = Table(title=f"{rows:,} records, {days} days", title_justify="left")
    for heading in ("question", "asked", "p50 ms", "p95 ms", "slowest", "found"):
        table.add_column(heading, justify="left" if heading == "question" else "right")
    for one in answers:
        shown = (f"{value:,.1f}" for value in (one.p50, one.p95, one.slowest))
        table.add_row(one.question, str(one.asked), *shown, f"{one.found:,}")
    console.print(table)
    for what, figure in {**leaving, **loads}.items():
        console.print(f"{what}: {figure:,.2f}")
    if out is not None:
        found = {"machine": machine(), "rows": rows, "days": days, "retention": leaving}
        found |= {"answers": [asdict(one) for one in answers], "rows_per_second": loads}
        out.write_text(json.dumps(found, indent=1))


@contextmanager
def filled(days: int, rows: int) -> Iterator[Log]:
    """A PostgreSQL with that log in it."""
    with PostgresProcess(config=CONFIG) as postgres, postgres.database() as url:
        database = Database(Settings.model_validate({"database": {"url": url}}))
        database.migrate()
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        log = Log(database, days, rows, today - timedelta(days=days))
        began = time.monotonic()
        _execute(database, "DROP INDEX cloche_log_records_text")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda day: _fill(log, day), range(days)))
        # It takes over those that the days have.
        _execute(database, f"CREATE INDEX cloche_log_records_text ON cloche_log_records {_TEXT}")
        _execute(database, "VACUUM ANALYZE cloche_log_records")
        console.print(f"filled in {time.monotonic() - began:.0f} s; {_size(database)}")
        yield log
        database.close()


def _fill(log: Log, day: int) -> None:
    """A day, then its text index: row by row that would take twice as long."""
    start = log.first + timedelta(days=day)
    name = name_of(RECORDS, start.date())
    bounds = f"FROM ('{first_id(start)}') TO ('{first_id(start + timedelta(days=1))}')"
    fill = _FILL.format(
        table="cloche_log_records",
        day=day,
        start=int(start.timestamp() * 1000),
        rows=log.rows,
        block=RUN * ABREAST,
        abreast=ABREAST,
    )
    _execute(
        log.database, f"CREATE TABLE {name} PARTITION OF cloche_log_records FOR VALUES {bounds}"
    )
    _execute(log.database, fill)
    _execute(log.database, f"CREATE INDEX {name}_text ON {name} {_TEXT}")


def ask(log: Log, asks: int) -> Iterator[Answer]:
    """What people ask, each ``asks`` times; what takes seconds, fewer times."""
    reader = LogReader(log.database)
    last_day = {"since": log.first + timedelta(days=log.days - 1)}

    def page(**fields: object) -> int:
        return len(reader.page(LogFilter.of(**fields)).records)

    def trace() -> int:
        found = reader.trace(log.run())
        return found.total if found else 0

    def errors(**fields: object) -> int:
        return reader.errors(LogFilter.of(**fields)).total

    def summary(**fields: object) -> int:
        return reader.summary(LogFilter.of(**fields)).total

    yield _timed("newest 100", page, asks)
    yield _timed("newest 100 of a run", lambda: page(run=log.run()), asks)
    yield _timed("newest 100 errors", lambda: page(level="error"), asks)
    yield _timed("newest 100 of a category and an agent",
                 lambda: page(category="llm", agent="writer"), asks)  # fmt: skip
    yield _timed("of an agent that never was, last day",
                 lambda: page(agent="nobody", **last_day), asks // 4)  # fmt: skip
    yield _timed("trace of a run", trace, asks)
    yield _timed("summary of a run", lambda: summary(run=log.run()), asks)
    yield _timed("summary of the last day", lambda: summary(**last_day), asks // 4)
    yield _timed("errors of a run", lambda: errors(run=log.run()), asks)
    yield _timed("errors of the last day", lambda: errors(**last_day), asks // 4)
    yield _timed("errors of all days", lambda: errors(since=log.first), asks // 8)
    yield _timed("text: a word of one record", lambda: page(text=log.order()), asks)
    yield _timed("text: a word of every fourth", lambda: page(text="reviewer"), asks)
    yield _timed("text: a phrase of 1 in 700", lambda: page(text='"refused after 6"'), asks)
    yield _timed("text: two words, last day",
                 lambda: page(text="chapter reviewer", **last_day), asks)  # fmt: skip
    yield _timed("text: a word that is nowhere", lambda: page(text="kaboom"), asks)
    yield _timed("a look of the live tail",
                 lambda: len(look(reader, LogFilter(), RecordTail()).records), asks)  # fmt: skip


def without_default(log: Log, asks: int) -> Iterator[Answer]:
    """The same where there is no default partition: days are then read one after the other."""
    reader = LogReader(log.database)
    _execute(
        log.database, "ALTER TABLE cloche_log_records DETACH PARTITION cloche_log_records_default"
    )

    def page(text: str) -> int:
        return len(reader.page(LogFilter.of(text=text)).records)

    yield _timed("text, no default: a word of one record", lambda: page(log.order()), asks)
    yield _timed("text, no default: a phrase of 1 in 700", lambda: page('"refused after 6"'), asks)
    yield _timed("newest 100, no default partition", lambda: len(reader.page().records), asks)
    _execute(
        log.database,
        "ALTER TABLE cloche_log_records ATTACH PARTITION cloche_log_records_default DEFAULT",
    )


def retention(log: Log) -> dict[str, float]:
    """Seconds a day takes to leave: dropped, and deleted row by row."""
    second = log.first + timedelta(days=1)
    began = time.monotonic()
    done = expire(log.database, datetime.now(UTC) - second, now=datetime.now(UTC))
    dropped = time.monotonic() - began
    assert len(done.days) == 1, done
    name = name_of(RECORDS, second.date())
    began = time.monotonic()
    for _ in range(-(-log.rows // 5000)):
        _execute(
            log.database,
            f"DELETE FROM {name} WHERE id IN (SELECT id FROM {name} ORDER BY id LIMIT 5000)",
        )
    deleted = time.monotonic() - began
    return {f"drop a day of {log.rows:,} rows, s": dropped, "delete one row by row, s": deleted}


def insertion(log: Log) -> dict[str, float]:
    """Rows per second that one connection inserts into a table of a million, by its indexes."""
    steps = {
        "the key alone": "ALTER TABLE loads ADD PRIMARY KEY (id)",
        "and run": "CREATE INDEX ON loads (run_id, id)",
        "and task": "CREATE INDEX ON loads (task_id, id)",
        "and errors": "CREATE INDEX ON loads (id) WHERE level >= 40",
        "and text (words)": f"CREATE INDEX loads_text ON loads {_TEXT}",
        "text by trigrams instead": "DROP INDEX loads_text; CREATE EXTENSION pg_trgm; "
        "CREATE INDEX ON loads USING gin (message gin_trgm_ops)",
    }
    rows = min(100_000, log.rows // len(steps))
    last, other = (
        name_of(RECORDS, (log.first + timedelta(days=log.days - n)).date()) for n in (1, 2)
    )
    _execute(log.database, f"CREATE TABLE loads AS SELECT * FROM {last} LIMIT 500000")
    found = {}
    for number, (name, statement) in enumerate(steps.items()):
        for part in statement.split("; "):
            _execute(log.database, part)
        fresh = f"SELECT * FROM {other} ORDER BY id LIMIT {rows} OFFSET {number * rows}"
        _execute(log.database, f"CREATE TABLE fresh AS {fresh}")
        began = time.monotonic()
        _execute(log.database, "INSERT INTO loads SELECT * FROM fresh")
        found[f"insert, {name}, rows/s"] = rows / (time.monotonic() - began)
        _execute(log.database, "DROP TABLE fresh")
    return found


def _timed(question: str, answer: Callable[[], int], asks: int) -> Answer:
    asks = max(3, asks)
    took, found = [], 0
    for _ in range(asks):
        began = time.perf_counter()
        found = answer()
        took.append((time.perf_counter() - began) * 1000)
    console.print(f"[dim]{question}: {percentile(took, 0.5):.1f} ms[/]")
    return Answer(question, asks, percentile(took, 0.5), percentile(took, 0.95), max(took), found)


def _execute(database: Database, statement: str) -> None:
    with database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(
            statement.replace("%", "%%")
        )


def _size(database: Database) -> str:
    query = text(
        "SELECT pg_size_pretty(sum(pg_table_size(relid))) || ' of rows, ' ||"
        " pg_size_pretty(sum(pg_indexes_size(relid))) || ' of indexes'"
        " FROM pg_partition_tree('cloche_log_records') WHERE isleaf"
    )
    with database.read() as connection:
        return str(connection.execute(query).scalar_one())
