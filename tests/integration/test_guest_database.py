"""Cloche's tables beside a project's own, and those that an older Cloche made."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloche.database import Database
from cloche.database.schema import HEAD, VERSION_TABLE
from cloche.errors import DatabaseError
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.logs.retention import expire
from cloche.settings import Settings, load
from cloche.tasks.download.repository import DownloadRepository
from cloche.testing import PostgresProcess

#: Databases as version 0003 wrote them: a download, two log records, a dead letter.
_WRITTEN = Path(__file__).parent / "databases"

MIGRATE = """
import sys
sys.path.insert(0, "")
import alembic
assert alembic.OURS
from cloche.database import Database
from cloche.settings import Settings
Database(Settings.model_validate({"database": {"url": sys.argv[1]}})).migrate()
"""

#: What version 0003 made, undone.
_AS_OF_0002 = {
    "sqlite": "DROP VIEW log_records_words;",
    "postgresql": (
        "DROP FUNCTION cloche_words CASCADE;"
        "CREATE INDEX log_records_text ON log_records USING gin (to_tsvector('simple', message));"
    ),
}
_IN_SHARED_TABLE = (
    f"DROP TABLE {VERSION_TABLE};"
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num));"
    "INSERT INTO alembic_version VALUES ('0002');"
)
_PROJECTS_OWN = """
CREATE TABLE downloads (id INTEGER PRIMARY KEY, what TEXT);
CREATE INDEX downloads_created ON downloads (what);
INSERT INTO downloads VALUES (1, 'ours');
CREATE TABLE log_records (id INTEGER PRIMARY KEY, what TEXT);
CREATE INDEX log_records_run ON log_records (what);
INSERT INTO log_records VALUES (1, 'ours');
CREATE TABLE log_dead_letters (what TEXT);
CREATE TABLE log_records_text (what TEXT);
"""


def _url(kind: str, directory: Path, request: pytest.FixtureRequest) -> str:
    if kind == "sqlite":
        return f"sqlite:///{directory / 'project.db'}"
    server: PostgresProcess = request.getfixturevalue("postgres")
    name = f"guest_{os.getpid()}_{abs(hash(directory))}"
    server.execute(f"CREATE DATABASE {name}")
    return server.url_of(name)


def _database(url: str) -> Database:
    return Database(Settings.model_validate({"database": {"url": url}}))


def _version(database: Database, table: str) -> str:
    with database.read() as connection:
        found: str = connection.execute(sa.text(f"SELECT version_num FROM {table}")).scalar_one()
    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_projects_own_version_and_package_stay(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = _url(kind, tmp_path, request)
    database = _database(url)
    with database.write() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('0002')"))
    (tmp_path / "alembic").mkdir()
    (tmp_path / "alembic" / "__init__.py").write_text("OURS = True\n")
    done = subprocess.run(
        [sys.executable, "-P", "-c", MIGRATE, url],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert _version(database, "alembic_version") == "0002"
    assert _version(database, VERSION_TABLE) == HEAD
    database.migrate()
    database.close()


def _execute(database: Database, script: str) -> None:
    """Run several statements at once, as only the driver can."""
    with database.write() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        if connection.dialect.name == "sqlite":
            driver.executescript(f"BEGIN; {script}")
        else:
            driver.execute(script)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("made_by", ["0003", "0002"])
def test_a_database_of_an_older_cloche_is_taken_on_with_its_rows(
    kind: str, made_by: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = _database(_url(kind, tmp_path, request))
    _execute(database, (_WRITTEN / f"0003.{kind}.sql").read_text())
    if made_by == "0002":
        _execute(database, _AS_OF_0002[kind] + _IN_SHARED_TABLE)
    database.migrate()
    assert _version(database, VERSION_TABLE) == HEAD
    with database.read() as connection:
        inspector = sa.inspect(connection)
        names = inspector.get_table_names() + inspector.get_view_names()
        indexes = [one["name"] for name in names for one in inspector.get_indexes(name)]
    assert not [name for name in (*names, *indexes) if not str(name).startswith("cloche_")]
    [download] = DownloadRepository(database).page()
    assert download.url == "http://h/kept"
    reader = LogReader(database)
    [record] = reader.page(LogFilter.of(text="数据库")).records
    assert record.message == "数据库 connection lost"
    assert len(reader.page(LogFilter.of(run="old")).records) == 2
    gone = expire(database, timedelta(0), now=datetime(2026, 11, 22, 13, tzinfo=UTC))
    # The partition of their day was made under the old name.
    assert gone.days == (("cloche_log_records_20261120",) if kind == "postgresql" else ())
    assert gone.rows == (0 if kind == "postgresql" else 2)
    assert gone.dead_letters == 1
    assert reader.page(LogFilter.of(text="数据库")).records == ()
    database.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_projects_own_tables_are_not_touched(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = _database(_url(kind, tmp_path, request))
    _execute(database, _PROJECTS_OWN)
    database.migrate()
    # A version that made no logs yet does not account for a table of this name.
    _execute(
        database,
        f"UPDATE {VERSION_TABLE} SET version_num = '0001';"
        + _dropped(database, "cloche_log_records", "cloche_log_dead_letters")
        + "ALTER TABLE downloads RENAME TO theirs; DROP INDEX downloads_created;"
        "ALTER TABLE cloche_downloads RENAME TO downloads;",
    )
    database.migrate()
    assert _version(database, VERSION_TABLE) == HEAD
    with database.read() as connection:
        for table in ("theirs", "log_records"):
            rows = connection.execute(sa.text(f"SELECT id, what FROM {table}")).all()
            assert rows == [(1, "ours")]
        inspector = sa.inspect(connection)
        assert [one["name"] for one in inspector.get_indexes("log_records")] == ["log_records_run"]
        assert inspector.has_table("log_records_text")
        assert inspector.has_table("cloche_downloads")
    database.close()


def _dropped(database: Database, *tables: str) -> str:
    """Statements that undo versions 0002 to 0004."""
    statements = [f"DROP TABLE {table};" for table in tables]
    if database.url.get_backend_name() == "sqlite":
        statements[:0] = [
            "DROP TRIGGER cloche_log_records_deleted;",
            "DROP TABLE cloche_log_records_text;",
            "DROP VIEW cloche_log_records_words;",
        ]
    else:
        statements.append("DROP FUNCTION cloche_words;")
    return "".join(statements)


def test_a_database_that_cannot_be_used_is_refused_by_who_needs_it() -> None:
    environ = {"DATABASE_URL": "mysql://u:p@h/d"}
    settings = load(environ=environ, guest=False).settings
    with pytest.raises(DatabaseError, match=r"cannot be kept in mysql://u:\*+@h/d"):
        Database(settings)
