"""The version of the tables, and the way from any older one to it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from cloche.errors import DatabaseError

#: The newest migration in ``migrations/versions``.
HEAD = "0002"
MIGRATIONS = Path(__file__).parent / "migrations"
#: Any constant does; it names the migration lock among a server's advisory locks.
_ADVISORY_LOCK = 0xC10C4E


def version(connection: Connection) -> str | None:
    """The version of the tables in the database; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found


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
    # Versions are zero-padded numbers, so that they compare as text.
    if found is not None and found > HEAD:
        raise DatabaseError(
            f"The database {engine.url.render_as_string()} was written by a newer Cloche.",
            why=f"Its tables have version {found}; this Cloche knows up to {HEAD}.",
            fix="Upgrade Cloche (pip install -U cloche), or use another database.",
        )
    return found == HEAD


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Keep other processes from migrating the same database meanwhile."""
    if engine.dialect.name == "sqlite":
        with open(f"{engine.url.database}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})


def _run_alembic(engine: Engine) -> None:
    # Importing Alembic costs more than everything else a start needs from the database,
    # and all starts but the first after an upgrade have nothing to migrate.
    from alembic import command, config  # noqa: PLC0415

    alembic = config.Config()
    alembic.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    alembic.set_main_option("path_separator", "os")
    with engine.execution_options(cloche_write=True).begin() as connection:
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, HEAD)
