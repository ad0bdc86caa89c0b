"""Brokers other than Redis, asked through kombu: RabbitMQ, SQS, memory, …"""

from __future__ import annotations

import time
from typing import Any

from kombu.connection import Connection
from kombu.exceptions import KombuError
from kombu.transport import TRANSPORT_ALIASES

from cloche.broker import faults
from cloche.broker.address import Address, masked
from cloche.broker.facts import BrokerFacts
from cloche.broker.sniff import speaks_plain_redis
from cloche.errors import BrokerError, BrokerFault

#: AMQP 0-9-1 reply codes, https://www.rabbitmq.com/amqp-0-9-1-reference.html#constants
_ACCESS_REFUSED, _NOT_ALLOWED = 403, 530
_PRODUCTS = {"amqp": "rabbitmq"}
_PERSISTENCE: dict[str, tuple[bool | None, str]] = {
    "memory": (False, "none: messages live inside one process"),
    "filesystem": (True, "files"),
    "amqp": (None, "as its queues are declared (durable by default)"),
}


def probe_foreign(url: str, connect_timeout: float, socket_timeout: float) -> BrokerFacts:
    """Connect once. Times are in seconds. Raises BrokerError."""
    begun = time.perf_counter()
    connection = _connection(url, connect_timeout, socket_timeout)
    try:
        # 0 tries again never; None would try for ever (kombu.utils.functional).
        connection.ensure_connection(max_retries=0)
        return _facts(url, connection, time.perf_counter() - begun)
    # The drivers (py-amqp, boto3, …) share no base class of errors.
    except Exception as error:
        raise _explained(error, url, connection) from error
    finally:
        connection.release()


def _connection(url: str, connect_timeout: float, socket_timeout: float) -> Any:
    amqp = url.startswith(("amqp", "pyamqp"))
    # py-amqp waits for ever for a server that accepts and says nothing, unless told otherwise.
    options = {"read_timeout": socket_timeout, "write_timeout": socket_timeout} if amqp else {}
    try:
        connection: Any = Connection(
            url, connect_timeout=connect_timeout, transport_options=options
        )
        _ = connection.transport_cls, connection.transport
    except (KeyError, ValueError, KombuError) as error:
        raise BrokerError(
            f"{masked(url)!r} is not a broker URL",
            fault=BrokerFault.BAD_URL,
            why=str(error.args[0] if error.args else error),
            fix=f"use one of: {', '.join(sorted({name.lower() for name in TRANSPORT_ALIASES}))}",
        ) from error
    except ImportError as error:
        name = url.partition("://")[0].partition("+")[0]
        raise BrokerError(
            f"The library for {name} brokers is not installed",
            fault=BrokerFault.OTHER,
            why=str(error),
            fix=f"pip install 'kombu[{name}]'",
        ) from error
    return connection


def _facts(url: str, connection: Any, took: float) -> BrokerFacts:
    kind = str(connection.transport.driver_type)
    properties = getattr(connection.connection, "server_properties", None) or {}
    product = str(properties.get("product", kind)).lower()
    persistent, persistence = _PERSISTENCE.get(kind, (None, "unknown"))
    return BrokerFacts(
        url=masked(url),
        server=f"{product} {properties.get('version', '')}".strip(),
        persistent=persistent,
        persistence=persistence,
        policy="",
        role="",
        took=took,
    )


def _explained(error: Exception, url: str, connection: Any) -> BrokerError:
    at = Address(
        masked=masked(url),
        product=_PRODUCTS.get(connection.transport.driver_type, connection.transport.driver_type),
        host=connection.hostname or "localhost",
        port=connection.port or connection.transport.default_port or 0,
    )
    code = getattr(error, "reply_code", None) or getattr(error, "code", None)
    if code == _ACCESS_REFUSED:
        return BrokerError(
            f"The broker at {at.place} refused the user or password",
            fault=BrokerFault.AUTH,
            why=str(error),
            fix=f"correct user and password in the broker URL: amqp://USER:PASSWORD@{at.place}/",
        )
    if code == _NOT_ALLOWED:
        return BrokerError(
            f"The broker at {at.place} does not let this user into its virtual host",
            fault=BrokerFault.WRONG_DB,
            why=str(error),
            fix="name an existing one at the end of the broker URL; rabbitmqctl list_vhosts",
        )
    found = faults.explain(error, at)
    # Redis waits for the end of a line that AMQP's greeting does not have.
    if found.fault is BrokerFault.TIMEOUT and speaks_plain_redis(at.host, at.port, 1):
        return BrokerError(
            f"What listens at {at.place} is a Redis server and no {at.product} server",
            fault=BrokerFault.NOT_A_BROKER,
            why="it answers a Redis PING",
            fix=f"write redis://{at.place}/0",
        )
    return found
