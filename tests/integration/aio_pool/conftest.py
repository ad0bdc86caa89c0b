"""Workers shared by a module: one on the asyncio pool, one on prefork."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.aio_pool.harness import Worker, worker


@pytest.fixture(scope="module")
def asyncio_worker(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    """A worker on the asyncio pool, of the module's own."""
    name = request.module.__name__.rpartition(".")[2]
    directory = tmp_path_factory.mktemp("asyncio")
    with worker(directory, broker_url, f"{name}-asyncio", concurrency=1000) as found:
        yield found


@pytest.fixture(scope="module")
def prefork_worker(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    """The same on Celery's prefork pool, to compare with."""
    name = request.module.__name__.rpartition(".")[2]
    directory = tmp_path_factory.mktemp("prefork")
    with worker(directory, broker_url, f"{name}-prefork", pool="prefork", concurrency=2) as found:
        yield found
