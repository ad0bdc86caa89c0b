"""The URLs we hand out, used by kombu and Celery themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from kombu.connection import Connection

from cloche.testing import BrokerProcess


@pytest.fixture(scope="module")
def server() -> Iterator[BrokerProcess]:
    with BrokerProcess(password="p@ss/w:rd") as own:
        yield own


@pytest.mark.parametrize("kind", ["url", "unix_url"])
def test_kombu_sends_and_receives_over_it(server: BrokerProcess, kind: str) -> None:
    with Connection(getattr(server, kind)) as connection:
        with connection.SimpleQueue(f"queue-{kind}") as queue:
            queue.put({"number": 7})
            message = queue.get(timeout=5)
            message.ack()
        assert message.payload == {"number": 7}


# Celery 5.7's result backend calls what redis-py 8 deprecates.
@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
@pytest.mark.parametrize("kind", ["url", "unix_url"])
def test_celery_keeps_results_over_it(server: BrokerProcess, kind: str) -> None:
    with Celery("t", broker=getattr(server, kind), backend=getattr(server, kind)) as app:
        app.backend.store_result(f"id-{kind}", 42, "SUCCESS")
        assert app.AsyncResult(f"id-{kind}").get(timeout=5) == 42
        app.backend.client.close()
