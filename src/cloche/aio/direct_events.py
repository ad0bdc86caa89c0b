"""Celery's event dispatcher as requests see it: events go to a writer on the pool's loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from celery.utils.time import utcoffset

#: Seconds the offset of the local time zone is taken for granted.
OFFSET_SECONDS = 60


class Eventer:
    """``send`` from any thread. Whether events are wanted is Celery's dispatcher's to say.

    ``add(event)`` publishes one event soon. ``dispatcher()`` is asked each time: Celery
    makes a new one with each connection.
    """

    def __init__(
        self, dispatcher: Callable[[], Any], add: Callable[[dict[str, Any]], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._add = add
        self._pid = os.getpid()
        self._offset: tuple[float, int] = (0.0, 0)

    @property
    def enabled(self) -> bool:
        """Whether anybody wants events."""
        found = self._dispatcher()
        return bool(found and found.enabled)

    def send(self, type: str, **fields: Any) -> None:
        """As ``EventDispatcher.send`` for events of a buffered group."""
        dispatcher = self._dispatcher()
        if not dispatcher or not dispatcher.enabled:
            return
        groups = dispatcher.groups
        if groups and type.partition("-")[0] not in groups:
            return
        fields["hostname"] = dispatcher.hostname
        fields["pid"] = self._pid
        fields["clock"] = dispatcher.clock.forward()
        fields["timestamp"] = now = time.time()
        fields["type"] = type
        at, offset = self._offset
        if now - at > OFFSET_SECONDS:
            offset = utcoffset()
            self._offset = (now, offset)
        fields["utcoffset"] = offset
        self._add(fields)


class HubEventer:
    """The same where events cannot be published on the loop: Celery's dispatcher sends them."""

    def __init__(
        self, dispatcher: Callable[[], Any], call: Callable[[Callable[[], object]], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._call = call

    @property
    def enabled(self) -> bool:
        """Whether anybody wants events."""
        found = self._dispatcher()
        return bool(found and found.enabled)

    def send(self, type: str, **fields: Any) -> None:
        """Have the consumer's thread send it."""
        if self.enabled:
            self._call(lambda: self._dispatcher().send(type, **fields))
