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
from cloche.broker.keys import Keys
from cloche.broker.line import Line
from cloche.broker.outage import ERRORS, Outage
from cloche.broker.publish_spool import Spool, Spooled, default_directory

#: Seconds the server remembers a message id, so that a spooled copy is not published again.
REMEMBER = 86400


@dataclass(frozen=True, slots=True)
class Address:
    """A queue and the names of the keys that publishing to it touches."""

    queue: str
    names: list[str]


class Outbox:
    """Sends for one channel, over its line. ``client`` is asked for a client each time."""

    def __init__(self, client: Callable[[], redis.Redis], line: Line, keys: Keys) -> None:
        self._client = client
        self._line = line
        self._keys = keys

    def send(self, queue: str, suffix: str, envelope: message.Envelope) -> None:
        """Send it. Raises what redis-py raises."""
        wait = delayed.delay_of(envelope)
        if wait is not None:
            delayed.park(self._client(), self._keys, queue, suffix, envelope, wait)
            return
        self.push(self.address(queue, suffix), str(dumps(envelope)))

    def address(self, queue: str, suffix: str) -> Address:
        """Where messages of one priority of a queue go: for :meth:`push`."""
        keys = self._keys
        return Address(queue, [keys.queue(queue, suffix), keys.bell(queue), keys.consumed])

    def push(self, address: Address, text: str, broadcasts: Iterable[tuple[str, str]] = ()) -> None:
        """Send the text of a message that is due, and ``broadcasts`` (channel, text) with it.

        Raises what redis-py raises.
        """
        arguments = [text, address.queue, *(word for pair in broadcasts for word in pair)]
        lua.PUBLISH.call(self._line, address.names, arguments)


class SpoolingOutbox:
    """The same, but a server that is away makes nobody wait and nothing fail."""

    def __init__(
        self, client: Callable[[], redis.Redis], keys: Keys, directory: str | None, server: str
    ) -> None:
        self._client = client
        self._keys = keys
        self._outage = Outage("publishing")
        name = hashlib.sha256(f"{server} {keys.prefix}".encode()).hexdigest()[:16]
        self.spool = Spool(Path(directory) if directory else default_directory(), name, self._once)

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
            # Unlike a task id, this one is new.
            arguments: list[Any] = [one.queue, REMEMBER, one.rest, f"{one.task_id}#{one.id}"]
            lua.PARK_MANY.run(client, names, [*arguments, f"{one.suffix}:{one.text}"])
        else:
            names = [
                keys.queue(one.queue, one.suffix),
                keys.bell(one.queue),
                keys.consumed,
                marker,
            ]
            lua.PUBLISH_MANY.run(client, names, [one.queue, REMEMBER, one.text])
