"""The database and the rows of downloads in it."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from celery import Celery

from cloche.database import Database
from cloche.database.schema import HEAD, MIGRATIONS
from cloche.errors import DatabaseError
from cloche.settings import Settings
from cloche.tasks.download import Downloads
from cloche.tasks.download.catalogue import Catalogue
from cloche.tasks.download.records import DownloadState, Order, Stored
from cloche.tasks.download.table import metadata

ORDER = Order("http://h/x", None, 1000, None, "http")
STORED = Stored("ab" * 32, 10, "x", None)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(Settings(run_dir=tmp_path))
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def catalogue(database: Database) -> Catalogue:
    return Catalogue(database)


def test_the_migrations_lead_to_the_tables_of_the_code(database: Database) -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_migrated_database_needs_no_alembic(database: Database, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cloche.database import Database;"
        "from cloche.settings import Settings;"
        f"Database(Settings(run_dir=Path({str(tmp_path)!r}))).migrate();"
        "sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _migrate(directory: Path) -> None:
    Database(Settings(run_dir=directory)).migrate()


def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_migrate, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_database_of_a_newer_version_is_left_alone(database: Database, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "cloche.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(DatabaseError, match="newer Cloche"):
        database.migrate()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "cannot be kept in"),
        ("postgresql://u:secret@127.0.0.1:1/d", "nothing listens there"),
    ],
)
def test_a_database_that_cannot_be_used_says_why(url: str, reason: str) -> None:
    with pytest.raises(DatabaseError, match=reason) as caught:
        Database(Settings.model_validate({"database": {"url": url}})).migrate()
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "cloche.db").write_text("this is not a database, but long enough to be one" * 100)
    with pytest.raises(DatabaseError, match="cannot be used"):
        Database(Settings(run_dir=tmp_path)).migrate()


def test_a_forked_child_has_connections_of_its_own(catalogue: Catalogue) -> None:
    id = catalogue.add(ORDER)[0].id
    child = os.fork()
    if child == 0:
        try:
            catalogue.start(id)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    row = catalogue.get(id)
    assert row is not None
    assert row.state is DownloadState.RUNNING


def test_equal_requests_at_the_same_moment_become_one_row(catalogue: Catalogue) -> None:
    rows: list[tuple[str, bool]] = []

    def add() -> None:
        download, new = catalogue.add(ORDER)
        rows.append((download.id, new))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for id, _ in rows}) == 1
    assert [new for _, new in rows].count(True) == 1


def test_progress_reads_the_cancellation_back(catalogue: Catalogue) -> None:
    id = catalogue.add(ORDER)[0].id
    assert not catalogue.progress(id, 1, 10, 1.0, 0)  # not running
    catalogue.start(id)
    assert catalogue.progress(id, 5, 10, 2.5, 1)
    row = catalogue.cancel(id)
    assert row is not None
    assert (row.state, row.received, row.rate) == (DownloadState.RUNNING, 5, 2.5)
    assert not catalogue.progress(id, 6, 10, 1.0, 0)


def test_a_row_that_is_over_stays_so(catalogue: Catalogue) -> None:
    id = catalogue.add(ORDER)[0].id
    catalogue.start(id)
    assert catalogue.done(id, STORED, cached=False, checked=1.0)
    assert catalogue.start(id) is None
    assert catalogue.failed(id, "late") is None
    cancelled = catalogue.cancel(id)
    assert cancelled is not None
    assert cancelled.state is DownloadState.DONE
    assert catalogue.requeue(id) is None
    assert catalogue.add(ORDER)[1]


def test_a_row_without_a_sign_of_life_is_stalled_and_can_be_queued_again(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    first = catalogue.add(ORDER)[0]
    catalogue.start(first.id)
    assert catalogue.requeue(first.id) is None
    with sqlite3.connect(tmp_path / "cloche.db") as raw:
        raw.execute("UPDATE downloads SET updated = updated - 60")
    raw.close()
    row = catalogue.get(first.id)
    assert row is not None
    assert row.stalled
    again = catalogue.requeue(first.id)
    assert again is not None
    assert (again.state, again.stalled) == (DownloadState.QUEUED, False)
    assert again.task_id != first.task_id


def test_a_stalled_row_is_cancelled_without_its_worker(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    id = catalogue.add(ORDER)[0].id
    catalogue.start(id)
    with sqlite3.connect(tmp_path / "cloche.db") as raw:
        raw.execute("UPDATE downloads SET updated = updated - 60")
    raw.close()
    row = catalogue.cancel(id)
    assert row is not None
    assert row.state is DownloadState.CANCELLED


def test_a_download_whose_worker_never_came_back_fails_in_the_end(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    settings = Settings(run_dir=tmp_path)
    downloads = Downloads(Celery(broker="memory://"), settings)
    id = catalogue.add(ORDER)[0].id
    catalogue.start(id)
    lost = settings.broker.visibility_timeout + 120
    with sqlite3.connect(tmp_path / "cloche.db") as raw:
        raw.execute("UPDATE downloads SET updated = updated - ?", (lost,))
    raw.close()
    [row] = downloads.list()
    assert row.state is DownloadState.FAILED
    assert "worker ended" in (row.error or "")
