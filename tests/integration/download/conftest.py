"""What the download tests share; the broker fixture is local until the common one is there."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.integration.download.server import FileServer


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture(scope="session")
def noise() -> bytes:
    """Bytes that differ at every offset, so that a wrongly joined file cannot pass."""
    return random.Random(7).randbytes(8 * 1024**2)
