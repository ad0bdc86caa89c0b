"""A broker for the module, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.testing import BrokerProcess
from tests.integration.transport.harness import Bench


@pytest.fixture(scope="module")
def broker() -> Iterator[BrokerProcess]:
    with BrokerProcess() as server:
        yield server


@pytest.fixture
def scheme() -> str:
    return "cloche+redis"


@pytest.fixture
def bench(broker: BrokerProcess, scheme: str, tmp_path: Path) -> Iterator[Bench]:
    with Bench(broker, scheme, tmp_path) as found:
        found.client.flushall()
        yield found
