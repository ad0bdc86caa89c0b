"""The version of the tables, and the way from any older one to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, inspect, text

from cloche.errors import DatabaseError
from cloche.file_lock import FileLock

#: The version that had them last, and the one that made each.
_LAST = "0003"

_MADE_BY = {"downloads": "0001", "log_records": "0002", "log_dead_letters": "0002"}

#: The text index of SQLite, which migration 0004 makes again.
_TEXT_INDEX = (
    "DROP TRIGGER IF EXISTS log_records_deleted",
    "DROP TABLE IF EXISTS log_records_text",
    "DROP VIEW IF EXISTS log_records_words",
)

#: Statements that rename a table, its partitions and their indexes (with these, the constraints
#: that they serve), as far as they are called after it. A table comes before its partitions:
#: writers lock them in this order.
_RENAMING = text(
    """
    WITH tables AS (
      SELECT to_regclass(:name)::oid AS oid
      UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass(:name)
    ), relations AS (
      SELECT oid, 'TABLE' AS kind FROM tables
      UNION SELECT indexrelid, 'INDEX' FROM pg_index WHERE indrelid IN (SELECT oid FROM tables)
    )
    SELECT format('ALTER %s %s RENAME TO %I', kind, oid::regclass, 'cloche_' || relname)
    FROM relations JOIN pg_class USING (oid)
    WHERE starts_with(relname::text, :name)
    ORDER BY kind DESC, relname::text <> :name, relname
    """
)

#: The newest migration in ``migrations/versions``.
HEAD = "0004"

MIGRATIONS = Path(__file__).parent / "migrations"

#: Where the version is kept; Alembic's own ``alembic_version`` is the project's.
VERSION_TABLE = "cloche_alembic_version"

#: Where it was kept up to version 0002, and what tells Cloche's first table from a project's.
_SHARED_TABLE = "alembic_version"

_IN_SHARED_TABLE = ("0001", "0002")

_FIRST = frozenset({"url_key", "wanted_name", "active_key"})

#: A migration in a process of its own.
_APART = """
import json, sys
given = json.load(sys.stdin)
sys.path[:] = given["path"]
from cloche.database.engine import engine_of
from cloche.database.schema import _run_alembic
from sqlalchemy.engine import make_url
_run_alembic(engine_of(make_url(given["url"])))
"""

#: Any constant does; it names the migration lock among a server's advisory locks.
_ADVISORY_LOCK = 0xC10C4E


def rename(connection: Connection, version: str) -> None:
    """Rename what Cloche made, by the version that the database has; a project's own tables of
    these names, which no version accounts for, are not touched."""
    if version > _LAST:
        return
    one = _on_sqlite if connection.dialect.name == "sqlite" else _on_postgresql
    for name, made_by in _MADE_BY.items():
        if made_by <= version:
            one(connection, name)


def _on_postgresql(connection: Connection, name: str) -> None:
    found = connection.execute(_RENAMING, {"name": name})
    for statement in found.scalars().all():
        connection.exec_driver_sql(statement)


def _on_sqlite(connection: Connection, name: str) -> None:
    """SQLite renames no index: they are made again."""
    if name == "log_records":
        for statement in _TEXT_INDEX:
            connection.exec_driver_sql(statement)
    connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO cloche_{name}")
    indexes = connection.exec_driver_sql(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL "
        "AND tbl_name = ? AND name LIKE ? || '%'",
        (f"cloche_{name}", name),
    )
    for index, statement in indexes.all():
        connection.exec_driver_sql(f"DROP INDEX {index}")
        connection.exec_driver_sql(statement.replace(index, f"cloche_{index}", 1))


def version(connection: Connection) -> str | None:
    """The version of Cloche's tables in the database; None where there are none."""
    return _recorded(connection, VERSION_TABLE) or _recorded_in_shared_table(connection)


def _recorded(connection: Connection, table: str) -> str | None:
    if not inspect(connection).has_table(table):
        return None
    found: str | None = connection.execute(
        text(f"SELECT version_num FROM {table}")  # noqa: S608 (a name of ours)
    ).scalar_one_or_none()
    return found


def _recorded_in_shared_table(connection: Connection) -> str | None:
    """The version of tables made before they had a version table of their own.

    Alembic's usual table is a project's, unless the tables beside it are Cloche's.
    """
    inspector = inspect(connection)
    if not inspector.has_table("downloads"):
        return None
    if not {column["name"] for column in inspector.get_columns("downloads")} >= _FIRST:
        return None
    found = _recorded(connection, _SHARED_TABLE)
    return found if found in _IN_SHARED_TABLE else None


def _own_table(connection: Connection) -> None:
    """Move the version where it cannot meet a project's own."""
    found = _recorded_in_shared_table(connection)
    if found is None or inspect(connection).has_table(VERSION_TABLE):
        return
    connection.execute(text(f"DROP TABLE {_SHARED_TABLE}"))
    connection.execute(
        text(
            f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
            f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    insertion = f"INSERT INTO {VERSION_TABLE} VALUES (:found)"  # noqa: S608 (a name of ours)
    connection.execute(text(insertion), {"found": found})


def _own_names(connection: Connection) -> None:
    """Rename tables that an older version made."""
    found = _recorded(connection, VERSION_TABLE)
    if found is not None:
        rename(connection, found)


def upgrade(engine: Engine) -> None:
    """Migrate to `HEAD`, one process at a time."""
    if _current(engine):
        return
    with _alone(engine):
        if not _current(engine):
            _run_alembic(engine)


def _current(engine: Engine) -> bool:
    with engine.connect() as connection:
        found = version(connection)
        own = inspect(connection).has_table(VERSION_TABLE)
    # Versions are zero-padded numbers, so that they compare as text.
    if found is not None and found > HEAD:
        raise DatabaseError(
            f"The database {engine.url.render_as_string()} was written by a newer Cloche.",
            why=f"Its tables have version {found}; this Cloche knows up to {HEAD}.",
            fix="Upgrade Cloche (pip install -U cloche), or use another database.",
        )
    return own and found == HEAD


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Keep other processes from migrating the same database meanwhile."""
    if engine.dialect.name == "sqlite":
        with FileLock.acquire(Path(f"{engine.url.database}.lock")):
            yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})


def _run_alembic(engine: Engine) -> None:
    if _shadowed():
        _run_apart(engine.url)
        return
    # Importing Alembic costs more than everything else a start needs from the database,
    # and all starts but the first after an upgrade have nothing to migrate.
    from alembic import command, config  # noqa: PLC0415

    alembic = config.Config()
    alembic.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    alembic.set_main_option("path_separator", "os")
    with engine.execution_options(cloche_write=True).begin() as connection:
        _own_table(connection)
        _own_names(connection)
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, HEAD)


def _shadowed() -> bool:
    """Whether ``import alembic`` would give a package of the project's: its migrations often
    lie in a directory of this name, and the working directory comes first."""
    found = find_spec("alembic")
    return found is None or found.origin is None or Path(found.origin).parent != _installed()


def _installed() -> Path:
    return Path(str(distribution("alembic").locate_file("alembic")))


def _run_apart(url: URL) -> None:
    """Migrate in a process that does not see the project. Raises DatabaseError."""
    path = [str(_installed().parent), str(Path(__file__).parents[2]), *sys.path]
    given = {"url": url.render_as_string(hide_password=False), "path": path}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _APART],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DatabaseError(
            f"The database {url.render_as_string()} could not be migrated.",
            why=done.stderr.strip().rpartition("\n")[2],
        )
