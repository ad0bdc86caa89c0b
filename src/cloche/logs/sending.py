"""Batches of lines to the broker, as a Celery task each."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

from celery import Celery

from cloche.broker.channel import Channel
from cloche.broker.outage import Outage

logger = logging.getLogger(__name__)

#: The task that stores a batch; its only argument is the lines, as one text.
WRITE = "tasks.logs.write"
#: Seconds between two looks at the queue's length.
_LOOK_EVERY = 1.0


class Broker:
    """One connection of our own: a publisher that hangs holds up nobody but the log."""

    def __init__(self, app: Celery, queue: str, max_queued: int) -> None:
        self._app = app
        self._queue = queue
        self._max_queued = max_queued
        self._connection: Any = None
        self._producer: Any = None
        self._look_at = 0.0
        self.outage = Outage("the execution log's messages")

    def send(self, lines: bytes, count: int) -> bool:
        """Whether the broker has the batch now. Asks seldom while it is away."""
        if self.outage.pausing:
            return False
        try:
            self._check_length()
            self._app.send_task(
                WRITE,
                args=[lines.decode()],
                argsrepr=f"({count} records)",
                kwargsrepr="{}",
                queue=self._queue,
                producer=self._connected(),
                ignore_result=True,
                retry=False,
                add_to_parent=False,
            )
        except Exception as error:  # noqa: BLE001 (each transport has errors of its own)
            self.outage.failed(error)
            self.disconnect()
            return False
        self.outage.over()
        return True

    def disconnect(self) -> None:
        """Close the connection; the next batch opens another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collapse()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        self._connection = self._producer = None
        self.outage = Outage("the execution log's messages")

    def _connected(self) -> Any:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._connection._ensure_connection(max_retries=0)
            self._producer = self._app.amqp.Producer(self._connection.channel())
        return self._producer

    def _check_length(self) -> None:
        """Raises OSError while more waits there than the settings allow."""
        now = time.monotonic()
        if now < self._look_at:
            return
        channel = self._connected().channel
        queue = self._app.amqp.queues[self._queue].bind(channel)
        length = queue.queue_declare().message_count
        if isinstance(channel, Channel):  # what waits for its database is delayed by the broker
            length += channel.own.zcard(channel.keys.delayed(self._queue))
        if length >= self._max_queued:
            raise OSError(f"{length} messages wait in the queue {self._queue} (logs.max_queued)")
        self._look_at = now + _LOOK_EVERY
