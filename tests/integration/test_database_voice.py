"""A database that is away is told of with one voice, however many need it."""

from __future__ import annotations

import logging
import threading

import pytest

from cloche.database import Database
from cloche.errors import DatabaseError
from cloche.settings import Settings
from cloche.testing import PostgresProcess, wait_until


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cloche.outages"]


def test_a_line_when_it_goes_and_one_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    with PostgresProcess() as postgres:
        database = Database(Settings.model_validate({"database": {"url": postgres.url}}))
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        postgres.kill()
        refused: list[DatabaseError] = []

        def need() -> None:
            for _ in range(5):
                with pytest.raises(DatabaseError) as error, database.write():
                    pass
                refused.append(error.value)

        threads = [threading.Thread(target=need) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(refused) == 20
        assert len(lines(caplog)) == 1, lines(caplog)
        assert lines(caplog)[0].startswith("the database does not answer (")
        assert lines(caplog)[0].endswith("): what needs it fails or is retried")
        assert postgres.password not in lines(caplog)[0]
        postgres.start()
        wait_until(lambda: len(lines(caplog)) == 2, "the end", 30)
        assert lines(caplog)[1].startswith("the database answers again, after ")
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT 2").scalar() == 2
        database.close()
