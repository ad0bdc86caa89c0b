"""Records of the execution log: what a call costs, and how fast they become rows."""

from __future__ import annotations

from bench.errors import BenchError
from bench.figures import Figures
from bench.stage import Stage
from cloche.database import Database
from cloche.settings import Settings
from cloche.testing import PostgresProcess


def measure_postgresql(stage: Stage) -> Figures:
    """Into a PostgreSQL of this run alone, with fsync on."""
    with PostgresProcess(durable=True) as server:
        return _measure(stage, server.url)


def measure_sqlite(stage: Stage) -> Figures:
    """Into a SQLite file."""
    return _measure(stage, f"sqlite:///{stage.folder}/logs.db")


def _measure(stage: Stage, url: str) -> Figures:
    database = Database(Settings.model_validate({"database": {"url": url}}))
    database.migrate()
    stage.variables = {
        "BENCH_DATABASE": url,
        # `cloche worker` reads its settings here, whatever the application was made with.
        "CLOCHE_DATABASE__URL": url,
        "CLOCHE_BROKER__URL": stage.server.url,
        "CLOCHE_RUN_DIR": str(stage.folder / "run"),
    }
    copies = stage.case.contestant.copies if stage.case.contestant.worker else 0
    try:
        with stage.workers(queues=("logs",) if copies else ()):
            found = stage.drive("bench.drive_logs", "--count", str(stage.case.jobs), queue="logs")
        _check(database, stage.case.jobs, found)
    finally:
        database.close()
    return found


def _check(database: Database, jobs: int, found: Figures) -> None:
    """Every record is one row, or the figures are worth nothing."""
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT count(*) FROM cloche_log_records").scalar_one()
    expected = jobs + int(found.pop("warm_up"))
    if rows != expected:
        raise BenchError(f"{rows} rows of {expected} records")
