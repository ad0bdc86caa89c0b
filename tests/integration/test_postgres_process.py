"""The PostgreSQL that ``cloche.testing`` runs for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
import psycopg
import pytest

from cloche.errors import NotReadyError
from cloche.testing import PostgresProcess


@pytest.fixture
def own(postgres: PostgresProcess) -> Iterator[PostgresProcess]:
    """One to kill; the shared one only proves that PostgreSQL is installed."""
    with PostgresProcess() as server:
        yield server


def test_it_never_runs_as_root_and_lets_nobody_in_without_a_password(
    postgres: PostgresProcess,
) -> None:
    assert psutil.Process(postgres.pid).uids().effective != 0
    with pytest.raises(psycopg.OperationalError, match="no password"):
        psycopg.connect(postgres.url.replace(f":{postgres.password}@", "@"))


def test_databases_are_copies_of_their_template_and_strangers(postgres: PostgresProcess) -> None:
    with postgres.database() as template:
        with psycopg.connect(template) as connection:
            connection.execute("CREATE TABLE here (n int)")
        name = template.rpartition("/")[2]
        with postgres.database(name) as one, postgres.database(name) as other:
            with psycopg.connect(one) as connection:
                connection.execute("INSERT INTO here VALUES (1)")
            with psycopg.connect(other) as left_open:
                assert left_open.execute("SELECT count(*) FROM here").fetchone() == (0,)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(one)


def test_it_keeps_its_data_and_its_port_over_kill_9(own: PostgresProcess) -> None:
    own.execute("CREATE TABLE kept AS SELECT 7 AS n")
    first, port = own.pid, own.port
    own.kill()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(own.url)
    own.start()
    assert own.pid != first
    assert own.port == port
    with psycopg.connect(own.url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_it_stops_although_clients_are_connected(own: PostgresProcess) -> None:
    with psycopg.connect(own.url):
        own.stop()
        own.start()
    pid, directory = own.pid, own.directory
    own.close()
    assert not psutil.pid_exists(pid)
    assert not directory.exists()


def test_one_that_cannot_start_says_why(postgres: PostgresProcess) -> None:
    server = PostgresProcess(config={"no_such_setting": 1})
    directory = server.directory
    with pytest.raises(NotReadyError, match="no_such_setting"), server:
        pass
    assert not directory.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_it_dies_with_a_test_run_that_is_killed(postgres: PostgresProcess) -> None:
    script = (
        "import time; from cloche.testing import PostgresProcess; server = PostgresProcess(); "
        "server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # where the other user may go
        parent = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": directory},
        )
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        family = [server, *server.children()]
        parent.kill()
        parent.wait(10)
        parent.stdout.close()
        deadline = time.monotonic() + 10
        while any(map(_runs, family)):
            assert time.monotonic() < deadline, "the server outlived its test run"
            time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
