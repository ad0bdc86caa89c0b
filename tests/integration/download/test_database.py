"""The database and the rows of downloads in it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from celery import Celery
from sqlalchemy import Connection, MetaData, text, update

from cloche.database import Database
from cloche.database.schema import HEAD, MIGRATIONS, version
from cloche.errors import DatabaseError
from cloche.logs.table import metadata as logs_metadata
from cloche.settings import Settings
from cloche.tasks.download import Downloads
from cloche.tasks.download.records import DownloadState, Order, Stored
from cloche.tasks.download.repository import DownloadRepository
from cloche.tasks.download.table import downloads as downloads_table
from cloche.tasks.download.table import metadata as downloads_metadata
from cloche.testing import PostgresProcess

ORDER = Order("http://h/x", None, 1000, None, "http")
STORED = Stored("ab" * 32, 10, "x", None)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings with an empty database of each kind."""
    if request.param == "sqlite":
        yield Settings(run_dir=tmp_path)
        return
    with request.getfixturevalue("postgres").database() as url:
        yield _on(url, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated database of each kind."""
    with ExitStack() as cleanup:
        chosen = Settings(run_dir=tmp_path)
        if request.param == "postgresql":
            template = request.getfixturevalue("migrated")
            server = request.getfixturevalue("postgres")
            chosen = _on(cleanup.enter_context(server.database(template)), tmp_path)
        database = Database(chosen)
        database.migrate()
        cleanup.callback(database.close)
        yield database


def _on(url: str, run_dir: Path) -> Settings:
    return Settings.model_validate({"run_dir": run_dir, "database": {"url": url}})


@pytest.fixture
def catalogue(database: Database) -> DownloadRepository:
    return DownloadRepository(database)


def test_the_migrations_lead_to_the_tables_of_the_code(database: Database) -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD
    with database.read() as connection:
        for metadata in (downloads_metadata, logs_metadata):
            assert _differences(connection, metadata) == []


def _differences(connection: Connection, metadata: MetaData) -> Any:
    """What would have to change; what SQLAlchemy cannot describe (text search) aside."""
    known = {"seq", "cloche_log_records_text"}

    def ours(_object: object, name: str, kind: str, *_: object) -> bool:
        return name not in known if kind != "table" else name in metadata.tables

    context = MigrationContext.configure(connection, opts={"include_object": ours})
    return compare_metadata(context, metadata)


def test_migrating_again_changes_nothing(settings: Settings) -> None:
    database = Database(settings)
    database.migrate()
    DownloadRepository(database).add(ORDER)
    database.migrate()
    assert len(DownloadRepository(database).page()) == 1
    database.close()


def test_a_migrated_database_needs_no_alembic(database: Database, tmp_path: Path) -> None:
    code = (
        "import sys; from cloche.database import Database; from cloche.settings import Settings;"
        "Database(Settings.model_validate({'database': {'url': sys.argv[1]}})).migrate();"
        "sys.exit('alembic' in sys.modules)"
    )
    url = database.url.render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", code, url], check=True)


def test_several_processes_may_migrate_at_once(settings: Settings) -> None:
    assert _exit_codes(_migrate, [settings] * 4) == [0] * 4
    database = Database(settings)
    with database.read() as connection:
        assert version(connection) == HEAD
    database.close()


def _migrate(settings: Settings) -> None:
    Database(settings).migrate()


def _exit_codes(work: Callable[[Settings], None], each: Sequence[Settings]) -> list[int | None]:
    """How new processes end that do this work at the same time."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(settings,)) for settings in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_a_database_of_a_newer_version_is_left_alone(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE cloche_alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="newer Cloche") as caught:
        database.migrate()
    assert str(database.url.password) not in str(caught.value)


def _refusal(url: str) -> str:
    with pytest.raises(DatabaseError) as caught:
        Database(Settings.model_validate({"database": {"url": url}})).migrate()
    return str(caught.value)


def test_a_url_that_names_no_database_of_ours_is_refused() -> None:
    assert "cannot be kept in" in _refusal("sqlite://")


@pytest.mark.parametrize(
    ("part", "instead", "reason"),
    [
        ("{password}", "wrong-secret", "refuses this user or password"),
        (":{password}@", "@", "asks for a password"),
        ("{port}/postgres", "{port}/nowhere", "has no such database"),
        ("//postgres:", "//nobody-here:", "refuses this user or password"),
        ("127.0.0.1", "host.invalid", "its host name is unknown"),
        (":{port}", ":1", "nothing listens there"),
    ],
)
def test_a_server_that_cannot_be_used_says_why(
    postgres: PostgresProcess, part: str, instead: str, reason: str
) -> None:
    own = {"password": postgres.password, "port": postgres.port}
    assert part.format(**own) in postgres.url
    said = _refusal(postgres.url.replace(part.format(**own), instead.format(**own)))
    assert reason in said
    assert "fix:" in said
    assert postgres.password not in said
    assert "wrong-secret" not in said


def test_a_server_that_went_down_says_so_and_is_found_again(postgres: PostgresProcess) -> None:
    """Killed under a pool of open connections, it is used again as soon as it is back."""
    with PostgresProcess() as own:
        database = Database(Settings.model_validate({"database": {"url": own.url}}))
        database.migrate()
        catalogue = DownloadRepository(database)
        id = catalogue.add(ORDER)[0].id
        own.kill()
        with pytest.raises(DatabaseError, match="nothing listens there"):
            catalogue.get(id)
        own.start()
        found = catalogue.get(id)
        database.close()
    assert found is not None


def test_a_server_that_ends_in_the_middle_of_a_transaction_says_so(
    postgres: PostgresProcess,
) -> None:
    with PostgresProcess() as own:
        database = Database(Settings.model_validate({"database": {"url": own.url}}))

        def interrupted() -> None:
            with database.write() as connection:
                connection.execute(text("SELECT 1"))
                own.kill()
                connection.execute(text("SELECT 1"))

        with pytest.raises(DatabaseError, match="ended the connection"):
            interrupted()
        database.close()


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "cloche.db").write_text("this is not a database, but long enough to be one" * 100)
    with pytest.raises(DatabaseError, match="cannot be used"):
        Database(Settings(run_dir=tmp_path)).migrate()


def test_a_forked_child_has_connections_of_its_own(catalogue: DownloadRepository) -> None:
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


def test_equal_requests_at_the_same_moment_become_one_row(catalogue: DownloadRepository) -> None:
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


def test_progress_reads_the_cancellation_back(catalogue: DownloadRepository) -> None:
    id = catalogue.add(ORDER)[0].id
    assert not catalogue.progress(id, 1, 10, 1.0, 0)  # not running
    catalogue.start(id)
    assert catalogue.progress(id, 5, 10, 2.5, 1)
    row = catalogue.cancel(id)
    assert row is not None
    assert (row.state, row.received, row.rate) == (DownloadState.RUNNING, 5, 2.5)
    assert not catalogue.progress(id, 6, 10, 1.0, 0)


def test_a_row_that_is_over_stays_so(catalogue: DownloadRepository) -> None:
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


def _age(database: Database, seconds: float) -> None:
    """Make all rows that much older."""
    with database.write() as connection:
        connection.execute(
            update(downloads_table).values(updated=downloads_table.c.updated - seconds)
        )


def test_a_row_without_a_sign_of_life_is_stalled_and_can_be_queued_again(
    catalogue: DownloadRepository, database: Database
) -> None:
    first = catalogue.add(ORDER)[0]
    catalogue.start(first.id)
    assert catalogue.requeue(first.id) is None
    _age(database, 60)
    row = catalogue.get(first.id)
    assert row is not None
    assert row.stalled
    again = catalogue.requeue(first.id)
    assert again is not None
    assert (again.state, again.stalled) == (DownloadState.QUEUED, False)
    assert again.task_id != first.task_id


def test_a_stalled_row_is_cancelled_without_its_worker(
    catalogue: DownloadRepository, database: Database
) -> None:
    id = catalogue.add(ORDER)[0].id
    catalogue.start(id)
    _age(database, 60)
    row = catalogue.cancel(id)
    assert row is not None
    assert row.state is DownloadState.CANCELLED


def test_a_download_whose_worker_never_came_back_fails_in_the_end(
    catalogue: DownloadRepository, database: Database, tmp_path: Path
) -> None:
    settings = Settings(run_dir=tmp_path)
    downloads = Downloads(Celery(broker="memory://"), settings, database)
    id = catalogue.add(ORDER)[0].id
    catalogue.start(id)
    lost = settings.broker.visibility_timeout + 120
    _age(database, lost)
    [row] = downloads.list()
    assert row.state is DownloadState.FAILED
    assert "worker ended" in (row.error or "")
