"""RabbitMQ's queues: replicated, with a limit of deliveries, and a place for dead letters.

Celery 5.7 has settings for the type of its queues and for nothing else about them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import quote

from amqp.exceptions import PreconditionFailed
from celery.app import amqp as stock
from kombu import Exchange, Queue

logger = logging.getLogger("cloche.rabbitmq")

#: One for all queues. Topic, because native delayed delivery needs that; of a name of its own,
#: because an exchange that exists as "direct" cannot be declared again as another type.
EXCHANGE = Exchange("cloche", type="topic")
#: Where messages go that will not be delivered again.
DEAD = "cloche.dead"
_DEAD_ARGUMENTS = {
    "x-queue-type": "quorum",
    # Looking at a dead letter counts as a delivery; RabbitMQ 4 has a limit of 20 by default.
    "x-delivery-limit": 1_000_000,
}


class WorkQueue(Queue):
    """A queue of tasks. One that exists with other arguments is used as it is."""

    def queue_declare(
        self, nowait: bool = False, passive: bool = False, channel: Any = None
    ) -> Any:
        """Declare it, and where its dead letters go."""
        channel = channel or self.channel
        if passive:
            return super().queue_declare(nowait, passive, channel)
        # A refused declaration closes its channel (AMQP 0-9-1, 406).
        with closing(channel.connection.channel()) as apart:
            declare_dead(apart)
            try:
                return super().queue_declare(channel=apart)
            except PreconditionFailed as error:
                _tell(self.name, str(error))
        return super().queue_declare(passive=True, channel=channel)

    def bind_to(
        self,
        exchange: Any = "",
        routing_key: str = "",
        arguments: Any = None,
        nowait: bool = False,
        channel: Any = None,
    ) -> Any:
        """Bind it. For delayed delivery Celery binds queues that nobody may have declared yet."""
        if routing_key.startswith("#"):
            self.queue_declare(channel=channel)
        return super().bind_to(exchange, routing_key, arguments, nowait, channel)


def work_queue(name: str, max_deliveries: int) -> WorkQueue:
    """The queue ``name`` on our exchange; its message dies with delivery ``max_deliveries``."""
    return WorkQueue(
        name, EXCHANGE, routing_key=key_of(name), queue_arguments=arguments_of(max_deliveries)
    )


def arguments_of(max_deliveries: int) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        # It counts what comes back: two more after the first are three in all.
        "x-delivery-limit": max_deliveries - 1,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD,
        # A dead letter leaves its queue when the other one has it; this needs the overflow.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def key_of(name: str) -> str:
    """A routing key of one word: ``#.mail`` matches every key that ends in ``.mail``."""
    return quote(name, safe=" /:@-_").replace(".", "%2E")


def declare_dead(channel: Any) -> None:
    """The queue of dead letters."""
    channel.queue_declare(DEAD, durable=True, auto_delete=False, arguments=_DEAD_ARGUMENTS)


class WorkQueues(stock.Queues):
    """Celery's table of queues; those that nobody declared are made by ``make``."""

    def __init__(self, *args: Any, make: Callable[[str], Queue], **options: Any) -> None:
        self._make = make
        super().__init__(*args, **options)

    def new_missing(self, name: str) -> Queue:
        """A queue that is named somewhere and declared nowhere."""
        return self._make(name)


_told: set[str] = set()


def _tell(name: str, why: str) -> None:
    if name not in _told:
        _told.add(name)
        logger.warning(
            "queue %s exists with other arguments and is used as it is (%s): without a limit of "
            "deliveries and dead letters of ours; to change it, let it run empty, delete it "
            "(rabbitmqctl delete_queue %s), and start the workers again",
            name,
            why,
            name,
        )
