"""Servers for tests: one shared by the session, and one of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloche.database import Database
from cloche.errors import NotReadyError
from cloche.settings import Settings
from cloche.testing import BrokerProcess, PostgresProcess


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A broker shared by the whole session: use names of your own in it."""
    with BrokerProcess() as shared:
        yield shared.url


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    """A broker of one's own, with an append-only file: to be killed, filled, restarted."""
    with BrokerProcess(persistent=True) as own:
        yield own


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresProcess]:
    """A PostgreSQL shared by the whole session: make databases of your own in it."""
    try:
        server = PostgresProcess()
    except NotReadyError as error:
        pytest.skip(f"NOT TESTED ON POSTGRESQL: {error}")
    with server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: PostgresProcess) -> str:
    """The name of a database with Cloche's tables, to be copied."""
    postgres.execute("CREATE DATABASE migrated")
    url = postgres.url_of("migrated")
    database = Database(Settings.model_validate({"database": {"url": url}}))
    database.migrate()
    database.close()  # a database that is open cannot be copied
    return "migrated"
