"""An application on RabbitMQ: what no setting of Celery 5.7 can say about its queues."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import Celery
from celery.worker.consumer import Consumer as StockConsumer
from kombu import Queue

from cloche.broker.rabbitmq.delay import delays
from cloche.broker.rabbitmq.queue import WorkQueue, WorkQueues, work_queue
from cloche.settings.celery_keys import AMQP_SCHEMES, scheme_of
from cloche.settings.model import Settings
from cloche.settings.of_app import is_own


def on_rabbitmq(app: Celery) -> bool:
    """Whether the broker of ``app`` is reached by AMQP."""
    url = app.conf.broker_write_url
    return scheme_of(url[0] if isinstance(url, list) else url) in AMQP_SCHEMES


def wants_quorum(app: Celery, settings: Settings) -> bool:
    """Whether queues that ``app`` only names become quorum queues, if it is on RabbitMQ.

    A queue cannot change its type, and whoever declares it otherwise is refused: so an existing
    application, whose other processes may know nothing of Cloche, has to ask for it.
    """
    if app.conf.task_queue_max_priority:
        return False  # quorum queues have no priorities (RabbitMQ 3.10: 406)
    wanted = settings.broker.quorum_queues
    # Set by create_app(): its producers declare what its workers declare.
    return is_own(app) if wanted is None else wanted


def use_rabbitmq(app: Celery, settings: Settings) -> list[str]:
    """Queues that nobody declared are ours; delays start with the first publisher.

    Sentences about queues that stay as the application declares them.
    """
    if not on_rabbitmq(app):
        return []
    app.amqp.__dict__.pop("queues", None)  # made before, of what was declared then
    if not wants_quorum(app, settings):
        if settings.broker.quorum_queues is False:
            return []
        if app.conf.task_queue_max_priority:
            return ["queues on RabbitMQ stay classic: quorum queues have no priorities"]
        return [
            "queues on RabbitMQ stay as the application declares them; broker.quorum_queues = true "
            "replicates them and adds a delivery limit, dead letters and native delay "
            "(docs/rabbitmq.md says how existing queues are moved)"
        ]
    if _quorum(app):
        make = partial(work_queue, max_deliveries=settings.broker.max_deliveries)
        app.amqp.queues_cls = partial(WorkQueues, make=make)
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
    if on_rabbitmq(app) and wants_quorum(app, settings) and _quorum(app):
        return work_queue(name, settings.broker.max_deliveries)
    stock = app.amqp.Queues(None)
    return stock.get(name) or stock.new_missing(name)


def _quorum(app: Celery) -> bool:
    """Whether the application has not chosen another type by name."""
    conf = app.conf
    return {conf.task_default_queue_type, conf.task_create_missing_queue_type} == {"quorum"}


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
