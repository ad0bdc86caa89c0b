"""One RabbitMQ for all tests here: each uses queues of its own."""

from __future__ import annotations

import gc
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from cloche.app import create_app
from cloche.errors import NotReadyError
from cloche.settings import load
from cloche.testing import RabbitProcess
from tests.integration.app.conftest import LiveWorker, StartWorker, start_worker

__all__ = ["start_worker"]


@pytest.fixture(scope="session")
def shared_rabbit() -> Iterator[RabbitProcess]:
    try:
        server = RabbitProcess(config={"max_message_size": 2_000_000})
    except NotReadyError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(f"NOT TESTED ON RABBITMQ: {error}")
    with server:
        yield server
        client(server.url, "redis://", "any").pool.force_close_all()


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """py-amqp leaves sockets of connections that a server ended to the collector, which would
    warn in whatever test comes next."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def rabbit(shared_rabbit: RabbitProcess) -> RabbitProcess:
    return shared_rabbit


@pytest.fixture
def queue() -> str:
    """A name nobody else uses, with the characters that are special in a topic."""
    return f"q.{secrets.token_hex(4)}"


@pytest.fixture
def app(rabbit: RabbitProcess, broker_url: str, queue: str) -> Celery:
    """A hardened application of the test's own process; its default queue is ``queue``."""
    return client(rabbit.url, broker_url, queue)  # its connections are those of all tests


def client(url: str, results: str, queue: str, **values: Any) -> Celery:
    cli = {"broker.url": url, "results.url": results, "tasks.default_queue": queue, **values}
    return create_app("client", load(cli, environ={}).settings)


Worker = Callable[..., LiveWorker]


@pytest.fixture
def worker(rabbit: RabbitProcess, broker_url: str, queue: str, start_worker: StartWorker) -> Worker:
    """Start a worker of ``queue``: ``worker("-c", "2", **environ)``."""

    def start(*arguments: str, ready: bool = True, **environ: str) -> LiveWorker:
        return start_worker(
            rabbit.url,
            *arguments,
            ready=ready,
            **{
                "CLOCHE_RESULTS__URL": broker_url,
                "CLOCHE_TASKS__DEFAULT_QUEUE": queue,
                **environ,
            },
        )

    return start


def size(app: Celery, queue: str) -> int:
    """Messages that are ready in a queue."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).message_count)
