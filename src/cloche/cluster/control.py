"""Ask every worker several questions in one round trip; what the answers say of each.

``app.control.inspect()`` waits out its time-out once per question. Here the questions go
out together and the replies are told apart by their ticket, the way ``kombu.pidbox``
addresses them (message and headers as in its ``Mailbox._publish`` and ``_collect``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from kombu import Connection, Consumer, Producer, Queue
from kombu.utils.uuid import uuid

from cloche.records import WorkerSeen

logger = logging.getLogger("cloche.cluster")

#: command -> worker -> what it replied
Replies = dict[str, dict[str, Any]]

#: (command, worker, what it replied): two workers of one name stay two
Answers = tuple[tuple[str, str, Any], ...]

#: Seconds to listen on after everybody expected has answered, for workers nobody expected.
_LINGER = 0.15

#: The questions that together describe a worker (celery.worker.control).
COMMANDS = ("stats", "active", "active_queues")


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
        channel,
        [inbox],
        accept=["json"],
        no_ack=True,
        callbacks=[on_message],
        on_decode_error=_unread,
        auto_declare=False,
    )
    deadline = time.monotonic() + timeout
    with consumer:
        while (left := deadline - time.monotonic()) > 0:
            wait = min(left, _LINGER) if asked.complete(expected) else left
            try:
                connection.drain_events(timeout=wait)
            except TimeoutError:
                return


def _unread(message: Any, error: Exception) -> None:
    """A stock worker of an application whose tasks travel in pickle answers in pickle."""
    logger.warning("a worker's answer in %s is not read, only JSON is", message.content_type)


def workers_from(replies: Replies) -> tuple[WorkerSeen, ...]:
    """The workers that answered ``stats``, by name."""
    stats = replies.get("stats", {})
    return tuple(
        describe(
            name,
            stats[name],
            replies.get("active", {}).get(name),
            replies.get("active_queues", {}).get(name),
        )
        for name in sorted(stats)
        if isinstance(stats[name], dict) and "error" not in stats[name]
    )


def describe(name: str, stats: dict[str, Any], active: object, queues: object) -> WorkerSeen:
    """One worker, from its replies to the three questions (others' may be missing)."""
    pool = stats.get("pool") or {}
    total = stats.get("total") or {}
    return WorkerSeen(
        name=name,
        pid=int(stats.get("pid") or 0),
        pool=_pool_name(str(pool.get("implementation") or "")),
        concurrency=int(pool.get("max-concurrency") or 0),
        queues=tuple(
            str(queue["name"])
            for queue in (queues if isinstance(queues, list) else ())
            if isinstance(queue, dict) and "name" in queue
        ),
        active=len(active) if isinstance(active, list) else 0,
        processed={str(task): int(count) for task, count in total.items()},
        uptime=float(stats.get("uptime") or 0),
        prefetch=int(stats.get("prefetch_count") or 0),
        figures=_figures(pool, stats.get("leases") or {}),
    )


def _figures(pool: dict[str, Any], leases: dict[str, Any]) -> dict[str, float]:
    told = {
        "stalls": pool.get("stalls"),
        "leases_lost": leases.get("lost"),
        "fenced": leases.get("fenced"),
    }
    return {name: float(count) for name, count in told.items() if count is not None}


def _pool_name(implementation: str) -> str:
    """``celery.concurrency.prefork:TaskPool`` -> ``prefork``, as ``--pool`` calls it."""
    module = implementation.partition(":")[0].rpartition(".")[2]
    return "threads" if module == "thread" else module or "unknown"
