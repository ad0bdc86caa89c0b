"""Sending one routed message: at once, later, or into the spool when the server is away."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from kombu.utils.json import dumps

from cloche.broker import delayed, lua, message
from cloche.broker.connection.connection import Connections
from cloche.broker.connection.outage import ERRORS, Outage
from cloche.broker.keys import Keys
from cloche.broker.publish.spool import MessageSpool, Spooled, default_directory

#: Seconds the server remembers a message id, so that a spooled copy is not published again.
REMEMBER = 86400


@dataclass(frozen=True, slots=True)
class Destination:
    """A queue and the names of the keys that publishing to it touches."""

    queue: str
    names: list[str]


class Outbox:
    """Sends for one channel, over its lines. ``client`` is asked for a client each time."""

    def __init__(self, client: Callable[[], redis.Redis], lines: Connections, keys: Keys) -> None:
        self._client = client
        self._lines = lines
        self._keys = keys

    @property
    def closed(self) -> bool:
        return self._lines.closed

    def send(self, queue: str, suffix: str, envelope: message.Envelope) -> None:
        """Send it. Raises what redis-py raises."""
        wait = delayed.delay_of(envelope)
        if wait is not None:
            delayed.park(self._client(), self._keys, queue, suffix, envelope, wait)
            return
        self.push(self.address(queue, suffix), str(dumps(envelope)))

    def address(self, queue: str, suffix: str) -> Destination:
        """Where messages of one priority of a queue go: for :meth:`push`."""
        keys = self._keys
        return Destination(queue, [keys.queue(queue, suffix), keys.wakeup(queue), keys.consumed])

    def push(
        self, address: Destination, text: str, broadcasts: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Send the text of a message that is due, and ``broadcasts`` (channel, text) with it.

        Raises what redis-py raises.
        """
        arguments = [text, address.queue, *(word for pair in broadcasts for word in pair)]
        lua.PUBLISH.call(self._lines, address.names, arguments)


class SpoolingOutbox:
    """The same, but a server that is away makes nobody wait and nothing fail."""

    def __init__(
        self, client: Callable[[], redis.Redis], keys: Keys, directory: str | None, server: str
    ) -> None:
        self._client = client
        self._keys = keys
        self._outage = Outage("publishing")
        name = hashlib.sha256(f"{server} {keys.prefix}".encode()).hexdigest()[:16]
        self.spool = MessageSpool(
            Path(directory) if directory else default_directory(), name, self._once
        )

    def send(self, queue: str, suffix: str, envelope: message.Envelope) -> None:
        """Send it or keep it. Raises OSError if it could not be kept either."""
        wait = delayed.delay_of(envelope) or 0
        text = delayed.marked(envelope, wait) if wait else str(dumps(envelope))
        one = Spooled(
            id=uuid.uuid4().hex,
            queue=queue,
            suffix=suffix,
            wait=wait,
            at=time.time(),
            text=text,
            task_id=delayed.identity(envelope),
        )
        if self._outage.pausing:
            self.spool.append(one)
            return
        try:
            if self.spool.pending():
                self.spool.replay()  # in order
            self._once(one)
            self._outage.over()
        except redis.exceptions.MaxConnectionsError:
            raise  # all connections are in use: that is no outage
        except ERRORS as error:
            self._outage.failed(error)
            self.spool.append(one)

    def _once(self, one: Spooled) -> None:
        keys, client = self._keys, self._client()
        marker = keys.batch(one.id)
        if one.rest:
            names = [
                keys.delayed(one.queue),
                keys.delayed_messages(one.queue),
                keys.delaying,
                marker,
            ]
            arguments: list[Any] = [one.queue, REMEMBER, one.rest, one.task_id]
            lua.PARK_MANY.run(client, names, [*arguments, f"{one.suffix}:{one.text}"])
        else:
            names = [
                keys.queue(one.queue, one.suffix),
                keys.wakeup(one.queue),
                keys.consumed,
                marker,
            ]
            lua.PUBLISH_MANY.run(client, names, [one.queue, REMEMBER, one.text])
