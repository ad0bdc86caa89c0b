"""A database with the tables of the execution log: on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloche.database import Database
from cloche.logs.read.reader import LogReader
from cloche.settings import Settings
from cloche.testing import PostgresProcess


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Migrated, empty, one's own."""
    settings = {"run_dir": str(tmp_path)}
    with ExitStack() as stack:
        if request.param == "postgresql":
            postgres: PostgresProcess = request.getfixturevalue("postgres")
            template: str = request.getfixturevalue("migrated")
            url = stack.enter_context(postgres.database(template))
            made = Settings.model_validate({**settings, "database": {"url": url}})
        else:
            made = Settings.model_validate(settings)
        database = Database(made)
        stack.callback(database.close)
        database.migrate()
        yield database


@pytest.fixture
def reader(database: Database) -> LogReader:
    return LogReader(database)
