"""What the health check says of the database."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from cloche.health.answers import check_database
from cloche.settings import Settings
from cloche.testing import PostgresProcess


def _on(url: str) -> Settings:
    return Settings.model_validate({"database": {"url": url}})


def test_a_postgresql_that_answers_is_named_without_its_password(
    postgres: PostgresProcess,
) -> None:
    said = check_database(_on(postgres.url))
    assert f"127.0.0.1:{postgres.port}/postgres" in said
    assert postgres.password not in said


def test_a_postgresql_that_is_down_or_refuses_is_an_error(postgres: PostgresProcess) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        check_database(_on(postgres.url.replace(postgres.password, "wrong")))
    with pytest.raises(psycopg.OperationalError, match="refused"):
        check_database(_on(postgres.url.replace(f":{postgres.port}/", ":1/")))


def test_a_sqlite_file_is_not_made_by_the_question(tmp_path: Path) -> None:
    assert "made at first use" in check_database(Settings(run_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []
