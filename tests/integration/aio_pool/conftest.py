"""Workers shared by a module: one on the asyncio pool, one on prefork."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.aio_pool.harness import Worker, worker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest comparison is made once in make test, twice in make test-transport."""
    for item in items:
        if "test_same_as_prefork" in item.nodeid and "[kombu-" in item.nodeid:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="module", params=["kombu", "direct", "wrapped"])
def asyncio_worker(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    """A worker on the asyncio pool, of the module's own: as kombu delivers, direct, and as
    instrumentation makes it: with a wrapper around Celery's tracer and around the bodies."""
    name = f"{request.module.__name__.rpartition('.')[2]}-{request.param}"
    directory = tmp_path_factory.mktemp("asyncio")
    url = broker_url if request.param == "kombu" else f"cloche+{broker_url}"
    environ = {"JOBS_WRAPPED": "yes"} if request.param == "wrapped" else {}
    with worker(
        directory, url, name, concurrency=1000, result_backend=url, environ=environ
    ) as found:
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
