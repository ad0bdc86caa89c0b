"""Servers for tests: one shared by the session, and one of one's own; which files come first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.database import Database
from cloche.errors import NotReadyError
from cloche.settings import Settings
from cloche.testing import BrokerProcess, PostgresProcess

#: What takes longest, first: a file runs in one process, and none should be the last for long.
LONG = (
    "acceptance/test_processes.py",
    "projects/test_projects.py",
    "acceptance/test_existing_workers.py",
    "integration/rabbitmq/test_losses.py",
    "integration/health/test_hung_workers.py",
    "integration/beat/test_one_beat.py",
    "integration/rabbitmq/test_queues.py",
    "integration/app/test_hardened.py",
    "acceptance/test_up.py",
    "integration/aio_task/test_pools.py",
    "integration/aio_pool/test_running.py",
    "integration/aio_pool/test_direct.py",
    "integration/health/test_systemd.py",
    "acceptance/test_guest.py",
    "acceptance/test_process_faults.py",
    "integration/health/test_health.py",
    "integration/logs_write/test_pools.py",
    "integration/logs_write/test_endings.py",
    "integration/logs_write/test_logger.py",
    "integration/app/test_results_as_stock.py",
    "integration/app/test_outage_lines.py",
    "integration/transport/test_loss.py",
    "differential/test_differential.py",
    "chaos/test_rows_broker.py",
    "chaos/test_rows_workers.py",
    "chaos/test_rows_connections.py",
    "chaos/test_soak.py",
    "integration/download/test_worker.py",
    "integration/transport/test_ahead.py",
    "integration/process/test_supervisor.py",
    "integration/transport/test_delivery.py",
    "integration/aio_pool/test_ending.py",
    "integration/aio_pool/test_same_as_prefork.py",
    "integration/logs_read/test_read.py",
    "integration/app/test_recycling.py",
    "integration/test_cli_failures.py",
    "browser/test_downloads_page.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files go to several processes (pytest-xdist), the longest begin first."""
    if hasattr(config, "workerinput"):
        here = Path(__file__).parent
        ranks = {here / name: rank for rank, name in enumerate(LONG)}
        items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


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
