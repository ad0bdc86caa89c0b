"""Ask every worker several questions in one round trip.

``app.control.inspect()`` waits out its time-out once per question. Here the questions go
out together and the replies are told apart by their ticket, the way ``kombu.pidbox``
addresses them (message and headers as in its ``Mailbox._publish`` and ``_collect``).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from kombu import Connection, Consumer, Producer, Queue
from kombu.utils.uuid import uuid

#: command -> worker -> what it replied
Replies = dict[str, dict[str, Any]]

#: (command, worker, what it replied): two workers of one name stay two
Answers = tuple[tuple[str, str, Any], ...]

#: Seconds to listen on after everybody expected has answered, for workers nobody expected.
_LINGER = 0.15


@dataclass(slots=True)
class _Round:
    """One round of questions and the replies that have come so far."""

    tickets: dict[str, str]
    replies: Replies = field(default_factory=dict)
    answers: list[tuple[str, str, Any]] = field(default_factory=list)

    def take(self, body: Any, ticket: str) -> None:
        command = self.tickets.get(ticket)
        if command is not None and isinstance(body, dict):
            self.replies.setdefault(command, {}).update(body)
            self.answers += [(command, worker, reply) for worker, reply in body.items()]

    def complete(self, expected: Collection[str]) -> bool:
        """Whether every expected worker has answered every question."""
        return bool(expected) and all(
            set(expected) <= self.replies.get(command, {}).keys()
            for command in self.tickets.values()
        )


def ask(
    app: Celery,
    connection: Connection,
    commands: Iterable[str],
    *,
    timeout: float,
    expected: Collection[str] = (),
) -> Replies:
    """Put ``commands`` to all workers and gather replies for at most ``timeout`` seconds.

    Ends early once every ``expected`` worker has answered everything. Raises the
    connection's own errors when the broker cannot be used.
    """
    return _ask(app, connection, commands, timeout, expected).replies


def ask_each(
    app: Celery,
    connection: Connection,
    commands: Iterable[str],
    *,
    timeout: float,
    expected: Collection[str] = (),
) -> Answers:
    """As :func:`ask`, every single answer: also of workers that share a name."""
    return tuple(_ask(app, connection, commands, timeout, expected).answers)


def _ask(
    app: Celery,
    connection: Connection,
    commands: Iterable[str],
    timeout: float,
    expected: Collection[str],
) -> _Round:
    mailbox = app.control.mailbox(connection)
    with connection.channel() as channel:
        inbox = _inbox(mailbox)(channel)
        inbox.declare()
        questions = _Round({uuid(): command for command in commands})
        try:
            _publish(channel, mailbox, inbox, questions, timeout)
            _collect(connection, channel, inbox, questions, timeout, expected)
        finally:
            channel.after_reply_message_received(inbox.name)
    return questions


def _inbox(mailbox: Any) -> Queue:
    key = uuid()
    return Queue(
        f"{key}.{mailbox.reply_exchange.name}",
        exchange=mailbox.reply_exchange,
        routing_key=key,
        durable=False,
        auto_delete=True,
        expires=10.0,
    )


def _publish(channel: Any, mailbox: Any, inbox: Queue, asked: _Round, timeout: float) -> None:
    producer = Producer(channel, auto_declare=False)
    for ticket, command in asked.tickets.items():
        producer.publish(
            {
                "method": command,
                "arguments": {},
                "destination": None,
                "pattern": None,
                "matcher": None,
                "ticket": ticket,
                "reply_to": {"exchange": inbox.exchange.name, "routing_key": inbox.routing_key},
            },
            exchange=mailbox.exchange.name,
            declare=[mailbox.exchange],
            headers={"clock": mailbox.clock.forward(), "expires": time.time() + timeout},
            serializer=mailbox.serializer,
        )


def _collect(
    connection: Connection,
    channel: Any,
    inbox: Queue,
    asked: _Round,
    timeout: float,
    expected: Collection[str],
) -> None:
    def on_message(body: Any, message: Any) -> None:
        asked.take(body, message.headers.get("ticket", ""))

    consumer = Consumer(
        channel, [inbox], accept=["json"], no_ack=True, callbacks=[on_message], auto_declare=False
    )
    deadline = time.monotonic() + timeout
    with consumer:
        while (left := deadline - time.monotonic()) > 0:
            wait = min(left, _LINGER) if asked.complete(expected) else left
            try:
                connection.drain_events(timeout=wait)
            except TimeoutError:
                return
