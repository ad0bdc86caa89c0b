"""Results that several threads store at the same time go to the server together."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import redis

from cloche.broker import lua


@dataclass(eq=False, slots=True)
class Store:
    """One state to store: see store.lua for the fields and the reply."""

    key: str | bytes
    value: str | bytes
    seconds: int
    seen: str = ""
    reply: Any = None
    done: threading.Event = field(default_factory=threading.Event)

    def command(self, *, text: bool = False) -> list[Any]:
        """The words to send."""
        arguments: list[Any] = [self.value, self.seconds, self.seen]
        return lua.STORE.command([self.key], arguments, text=text)  # type: ignore[list-item]


class GroupCommit:
    """The first thread that comes sends for all that come while it waits for the server."""

    def __init__(self) -> None:
        self._waiting: list[Store] = []
        self._sending = False
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this one belongs to the parent process: its lock may be held for ever."""
        return self._pid != os.getpid()

    def store(self, client: redis.Redis, one: Store) -> Any:
        """Store it; the script's reply. Raises what redis-py raises."""
        with self._lock:
            self._waiting.append(one)
            first = not self._sending
            self._sending = True
        if first:
            self._send_all(client)
        one.done.wait()
        if isinstance(one.reply, Exception):
            raise one.reply
        return one.reply

    def _send_all(self, client: redis.Redis) -> None:
        while True:
            with self._lock:
                batch, self._waiting = self._waiting, []
                if not batch:
                    self._sending = False
                    return
            try:
                replies = _send(client, batch)
            except Exception as error:  # noqa: BLE001 (each caller gets it)
                replies = [error] * len(batch)
            for one, reply in zip(batch, replies, strict=True):
                one.reply = reply
                one.done.set()


def _send(client: redis.Redis, batch: list[Store]) -> list[Any]:
    replies = _pipeline(client, batch, text=False)
    unknown = [i for i, reply in enumerate(replies) if _is_unknown_script(reply)]
    if unknown:
        again = _pipeline(client, [batch[i] for i in unknown], text=True)
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    return replies


def _is_unknown_script(reply: object) -> bool:
    return isinstance(reply, redis.exceptions.NoScriptError)


def _pipeline(client: redis.Redis, batch: list[Store], *, text: bool) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for one in batch:
            pipe.execute_command(*one.command(text=text))  # type: ignore[no-untyped-call]
        return pipe.execute(raise_on_error=False)
