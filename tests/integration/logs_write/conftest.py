"""A stack of one's own, and one whose worker tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloche.testing import PostgresProcess
from tests.integration.logs_write.stack import LogStack

Make = Callable[..., LogStack]


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[Make]:
    """Makes stacks: ``make_stack(broker_url, database_url, **settings)``."""
    with ExitStack() as opened:

        def make(broker: str, database: str | None = None, **options: str) -> LogStack:
            stack = LogStack(tmp_path, broker, database, **options)
            opened.callback(stack.close)
            return stack

        yield make


@pytest.fixture
def database_url(postgres: PostgresProcess, migrated: str) -> Iterator[str]:
    """An empty database with Cloche's tables on the shared PostgreSQL."""
    with postgres.database(migrated) as url:
        yield url
