"""What becomes of the messages a dead consumer held."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import redis
from billiard.exceptions import WorkerLostError

from cloche.broker import lua, message
from cloche.broker.connection.commands import send
from cloche.broker.dead_letters import DeadLetters
from cloche.broker.keys import Keys
from cloche.broker.lease.lease import SUSPECT, key_of, number_of

logger = logging.getLogger("cloche.transport")

#: Messages read in one round trip.
PAGE = 50


class Reaper:
    """Returns messages to the front of their queues, marked; the third death is the last.

    May be interrupted at any point and continued by another: each message moves atomically.
    ``tell`` is called with each message that went to the dead letters, and why it is a failure.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        max_deliveries: int,
        tell: Callable[[bytes, Exception], None] = lambda *_: None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._max_deliveries = max_deliveries
        self._tell = tell

    def reap(self, consumer: str) -> int:
        """Empty the in-flight hash taken over from ``consumer``; how many went back.

        Raises what redis-py raises.
        """
        held = self._keys.reaped(consumer)
        fields = [name.decode() for name in send(self._client, "HKEYS", held)]
        suspect = self._suspect(held) if SUSPECT in fields else None
        # The first fetched goes last, so that it is the next to be popped.
        ordered = sorted((f for f in fields if number_of(f) >= 0), key=number_of, reverse=True)
        returned = 0
        for start in range(0, len(ordered), PAGE):
            page = ordered[start : start + PAGE]
            texts = send(self._client, "HMGET", held, *page)
            for field, raw in zip(page, texts, strict=True):
                if raw is not None:
                    guilty = suspect is None or suspect == field
                    returned += self.bring_back(held, consumer, field, raw, guilty=guilty)
        send(self._client, "DEL", held)
        send(self._client, "SREM", self._keys.reaping, consumer)
        logger.warning(
            "consumer %s is dead: %d of its %d messages went back to their queues",
            consumer,
            returned,
            len(ordered),
        )
        return returned

    def _suspect(self, held: str) -> str | None:
        value = send(self._client, "HGET", held, SUSPECT)
        return None if value is None else value.decode()

    def bring_back(
        self, held: str, consumer: str, field: str, raw: bytes, *, guilty: bool = True
    ) -> int:
        """Move one message out of the hash ``held``: 1 if it went to its queue, 0 if it is dead.

        ``guilty``: count the death of ``consumer`` against it. Raises what redis-py raises.
        """
        letters = DeadLetters(self._client, self._keys)
        try:
            envelope = message.decode(raw)
        except ValueError as error:
            letters.bury(held, field, raw, "undecodable", str(error))
            return 0
        message.mark_redelivered(envelope)
        if guilty:
            message.count_death(envelope, consumer, time.time())
        text = message.encode(envelope)
        count = message.delivery_count(envelope)
        if guilty and count >= self._max_deliveries:
            detail = f"{count} consumers died holding it"
            if letters.bury(held, field, text.encode(), "max-deliveries", detail):
                self._tell(raw, WorkerLostError(detail))
            return 0
        return int(lua.REQUEUE.run(self._client, [held], ["RPUSH", field, key_of(field), text]))
