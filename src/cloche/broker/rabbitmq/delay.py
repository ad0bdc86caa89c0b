"""Native delayed delivery on RabbitMQ: what Celery 5.7 leaves to chance about it.

Celery sends a task with a countdown to a chain of 28 exchanges and queues (kombu
``native_delayed_delivery``) that only a worker declares and binds to its queues, at its start.
Before that RabbitMQ drops such a task.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery import Celery
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import Connection, Queue
from kombu.common import maybe_declare
from kombu.transport.native_delayed_delivery import (
    MAX_NUMBER_OF_BITS_TO_USE,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from cloche.broker.rabbitmq.queue import WorkQueue

#: Seconds the chain can hold a message (2**28 - 1, 8.5 years).
LONGEST = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
SHORTEST = 1.1


def delays(app: Celery, send: Callable[..., Any]) -> Callable[..., Any]:
    """``send_task`` for an application on RabbitMQ, around its own."""

    def send_task(
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: datetime | str | None = None,
        *others: Any,
        **options: Any,
    ) -> Any:
        """As :meth:`celery.Celery.send_task`."""
        if countdown or eta:
            countdown, eta = _whole(app, countdown, eta)
            given = options.get("producer") or options.get("publisher")
            with app.producer_or_acquire(given) as producer:
                _make_ready(app, producer.connection)
                return send(
                    name, args, kwargs, countdown, eta, *others, **{**options, "producer": producer}
                )
        return send(name, args, kwargs, countdown, eta, *others, **options)

    send_task.__dict__["cloche_stock"] = send
    return send_task


def _whole(
    app: Celery, countdown: float | None, eta: datetime | str | None
) -> tuple[float | None, datetime | str | None]:
    """The chain counts whole seconds: less than one becomes one, which Celery would not take.

    Raises ValueError for what is too far away for the chain, which RabbitMQ would drop.
    """
    left = _seconds_until(app, eta) if eta else countdown or 0
    if left > LONGEST:
        raise ValueError(f"a delay of {left:.0f} s is more than RabbitMQ's {LONGEST} s (8.5 years)")
    # A bit more than one: some time passes before Celery looks at the clock again.
    return (SHORTEST, None) if 0 < left < SHORTEST else (countdown, eta)


def _seconds_until(app: Celery, eta: datetime | str) -> float:
    moment = maybe_make_aware(maybe_iso8601(eta), app.timezone)
    return float((moment - app.now()).total_seconds())


def _make_ready(app: Celery, connection: Connection) -> None:
    """Declare the chain and what it leads to, once a connection. Raises OperationalError."""
    queues = [queue for queue in app.amqp.queues.values() if isinstance(queue, WorkQueue)]
    missing = [queue for queue in queues if _mark(queue) not in connection.declared_entities]
    if missing:
        try:
            _declare(app, connection, missing)
        except connection.recoverable_connection_errors:
            # One of the pool's, whose server has gone away unnoticed.
            _declare(app, connection, missing)


def _declare(app: Celery, connection: Connection, queues: list[WorkQueue]) -> None:
    connection.ensure_connection(**app.conf.task_publish_retry_policy)
    declare_native_delayed_delivery_exchanges_and_queues(
        connection, app.conf.broker_native_delayed_delivery_queue_type
    )
    for queue in queues:
        with connection.channel() as channel:
            maybe_declare(queue.bind(channel))
        bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        connection.declared_entities.add(_mark(queue))


def _mark(queue: Queue) -> tuple[str, str]:
    return ("cloche-delay", str(queue.name))
