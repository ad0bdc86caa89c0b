"""An application on RabbitMQ: what no setting of Celery 5.7 can say about its queues."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import Celery
from celery.worker.consumer import Consumer as StockConsumer
from kombu import Exchange, Queue

from cloche.broker.amqp_delay import delays
from cloche.broker.amqp_queue import Queues, WorkQueue, work_queue
from cloche.settings.celery_keys import AMQP_SCHEMES, scheme_of
from cloche.settings.model import Settings


def on_rabbitmq(app: Celery) -> bool:
    """Whether the broker of ``app`` is reached by AMQP."""
    url = app.conf.broker_url
    return scheme_of(url[0] if isinstance(url, list) else url) in AMQP_SCHEMES


def use_rabbitmq(app: Celery, settings: Settings) -> list[str]:
    """Queues that nobody declared are ours; delays start with the first publisher.

    Sentences about queues the application has declared itself.
    """
    if not on_rabbitmq(app):
        return []
    if app.conf.task_create_missing_queue_type == "quorum" and _quorum(app):
        make = partial(work_queue, max_deliveries=settings.broker.max_deliveries)
        app.amqp.queues_cls = partial(Queues, make=make)
    app.amqp.__dict__.pop("queues", None)  # made before, of what was declared then
    app.send_task = delays(app, app.send_task)
    own = [queue.name for queue in _own(app) if not isinstance(queue, WorkQueue)]
    if not own:
        return []
    return [
        f"queue {', '.join(own)} on RabbitMQ is used as the application declares it: no quorum "
        "type, delivery limit, dead letters or native delay are added to it"
    ]


def leave_rabbitmq(app: Celery) -> None:
    """Undo :func:`use_rabbitmq`."""
    send = app.__dict__.get("send_task")
    if hasattr(send, "cloche_stock"):
        del app.send_task
    if isinstance(getattr(app.amqp.queues_cls, "func", None), type):
        del app.amqp.queues_cls


def declared_queue(app: Celery, settings: Settings, name: str) -> Queue:
    """How a queue that the application only names is declared."""
    if on_rabbitmq(app) and app.conf.task_default_queue_type == "quorum" and _quorum(app):
        return work_queue(name, settings.broker.max_deliveries)
    if name == app.conf.task_default_queue:
        exchange, key = app.conf.task_default_exchange, app.conf.task_default_routing_key
        return Queue(name, Exchange(exchange, app.conf.task_default_exchange_type), key)
    return Queue(name, Exchange(name, "direct"), routing_key=name)


def _quorum(app: Celery) -> bool:
    """Whether quorum queues will do: they have no priorities (RabbitMQ 3.10: 406)."""
    return not app.conf.task_queue_max_priority


def _own(app: Celery) -> list[Queue]:
    queues: Any = app.conf.task_queues or ()
    found = queues.values() if isinstance(queues, dict) else queues
    return [queue for queue in found if isinstance(queue, Queue)]


class Consumer(StockConsumer):
    """Celery's consumer, which acknowledges, so drops, what it cannot read."""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Make a dead letter of it where the queue has a place for them."""
        message.ack = message.reject
        super().on_decode_error(message, exc)
