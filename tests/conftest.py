"""Servers for tests: one shared by the session, and one of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloche.testing import BrokerProcess


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A broker shared by the whole session: use names of your own in it."""
    with BrokerProcess() as shared:
        yield shared.url


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    """A broker of one's own, with an append-only file: to be killed, filled, restarted."""
    with BrokerProcess(persistent=True) as own:
        yield own
