"""How many messages wait in each queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.transport.virtual import Channel as VirtualChannel

from cloche.broker.leader_lock import server_of
from cloche.records import QueueSeen, WorkerSeen


def declared_queues(app: Celery) -> tuple[str, ...]:
    """The queues the application itself names: declared ones and the default."""
    return tuple(sorted({*app.amqp.queues, app.conf.task_default_queue}))


def queues_seen(
    connection: Connection, declared: Iterable[str], workers: Sequence[WorkerSeen]
) -> tuple[QueueSeen, ...]:
    """Every queue that is declared or consumed, with its length and its consumers."""
    consumers: dict[str, list[str]] = {name: [] for name in declared}
    for worker in workers:
        for queue in worker.queues:
            consumers.setdefault(queue, []).append(worker.name)
    names = sorted(consumers)
    sizes = lengths(connection, names)
    return tuple(QueueSeen(name, sizes.get(name), tuple(consumers[name])) for name in names)


def paused_queues(connection: Connection) -> frozenset[str]:
    """Queues that nobody fetches from for now, by somebody's wish; Cloche's transport only."""
    server = server_of(connection)
    if server is None:
        return frozenset()
    members: Any = server.client.smembers(server.keys.paused)
    return frozenset(name.decode() for name in members)


def lengths(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """Messages waiting per queue; a queue the broker does not know is left out."""
    with connection.channel() as channel:
        if hasattr(channel, "_q_for_pri"):
            return _redis_lengths(channel, names)
        if isinstance(channel, VirtualChannel):
            return {name: int(channel._size(name)) for name in names if channel._has_queue(name)}
    return _declared_lengths(connection, names)


def _redis_lengths(channel: Any, names: Sequence[str]) -> dict[str, int]:
    """One pipeline for all queues. kombu's Redis transport keeps a list per priority step
    (``name``, ``name\\x06\\x16<step>``, …); a queue's length is the sum of them."""
    steps = channel.priority_steps
    with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
        for name in names:
            for step in steps:
                pipe.llen(channel._q_for_pri(name, step))
        sizes = pipe.execute()
    return {
        name: sum(sizes[number * len(steps) : (number + 1) * len(steps)])
        for number, name in enumerate(names)
    }


def _declared_lengths(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """AMQP: a passive declaration tells the length; one that fails closes its channel."""
    sizes = {}
    for name in names:
        channel = connection.channel()
        try:
            sizes[name] = int(channel.queue_declare(name, passive=True).message_count)
        except connection.channel_errors:
            continue
        finally:
            channel.close()
    return sizes
