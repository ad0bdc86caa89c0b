"""The production defaults of connections: time-outs, keepalive, retries of a publish."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from cloche.testing import BrokerProcess

ClientApp = Callable[..., Celery]
IGNORED = {"ignore_result": True}


def socket_of(client: Any) -> socket.socket:
    """The live socket below a redis-py client."""
    client.ping()
    connection = client.connection or client.connection_pool.get_connection()
    sock: socket.socket = connection._sock
    return sock


def test_broker_connections_have_timeouts_keepalive_and_health_checks(
    broker_url: str, client_app: ClientApp
) -> None:
    app = client_app(broker_url, broker__transport="cloche")
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        sock = socket_of(client)
        assert sock.gettimeout() == 5
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = client.connection_pool.connection_kwargs
        assert (options["socket_connect_timeout"], options["health_check_interval"]) == (5, 5)
        assert connection.default_channel.lease == 30
        assert connection.transport_cls == "cloche"
    stock = client_app(broker_url, broker__transport="stock")
    with stock.connection_for_write() as connection:
        assert socket_of(connection.default_channel.client).gettimeout() == 5
        assert connection.default_channel.visibility_timeout == 3600


@pytest.mark.parametrize("ignore_result", [True, False])
def test_a_silent_server_fails_a_publish_instead_of_holding_it(
    client_app: ClientApp, ignore_result: bool
) -> None:
    """Unset, the broker's time-outs hold it for ever, the result backend's policy for minutes.

    A caller that wants the result listens for it first; when that ends Celery raises
    RuntimeError ("Retry limit exceeded while trying to reconnect").
    """
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        app = client_app(
            f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
            broker__socket_timeout="200ms",
            results__socket_timeout="200ms",
            broker__publish_timeout="500ms",
        )
        begun = time.monotonic()
        with pytest.raises((OperationalError, RuntimeError)):
            app.send_task("anything", ignore_result=ignore_result)
        assert time.monotonic() - begun < 30


def test_result_connections_have_their_own_timeouts(broker_url: str, client_app: ClientApp) -> None:
    sock = socket_of(client_app(broker_url).backend.client)
    assert sock.gettimeout() == 10
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_publish_outlasts_a_broker_that_is_away_for_a_moment(client_app: ClientApp) -> None:
    with BrokerProcess(persistent=True) as broker:
        app = client_app(broker.url)
        app.send_task("warm-up", ignore_result=True)
        broker.kill()
        with pytest.raises(OperationalError):  # stock: three retries, 0.6 s in all
            app.send_task(
                "lost",
                ignore_result=True,
                retry_policy={"max_retries": 3, "interval_start": 0, "interval_step": 0.2},
            )
        # The server must be started by this thread: it dies with the one that started it.
        sender = threading.Thread(target=app.send_task, args=("kept",), kwargs=IGNORED)
        sender.start()
        time.sleep(1.5)  # the length of the outage, not a wait for something
        assert sender.is_alive()
        broker.start()
        sender.join(15)
        with broker.client() as client:
            assert client.llen("default") == 2


def test_the_pool_of_connections_is_bounded(broker_url: str, client_app: ClientApp) -> None:
    assert client_app(broker_url, broker__pool_limit="3").pool.limit == 3
