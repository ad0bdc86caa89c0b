"""Results that several threads store at the same time go to the server together."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import redis

from cloche.broker import lua
from cloche.broker.commands import send_all


@dataclass(eq=False, slots=True)
class Store:
    """One state to store: see store.lua for the fields and the reply."""

    key: str | bytes
    value: str | bytes
    seconds: int
    seen: str = ""
    reply: Any = None
    #: Set when ``reply`` is there, for who did not send it himself.
    done: threading.Event | None = None

    def first(self) -> list[Any]:
        """The words that store it where nothing is stored: the usual case."""
        limit = ["EX", self.seconds] if self.seconds else []
        return ["SET", self.key, self.value, "NX", *limit]

    def command(self, *, text: bool = False) -> list[Any]:
        """The words that replace what is stored, if that may be."""
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
            if not first:
                one.done = threading.Event()
        if first:
            self._send_all(client)
        elif one.done is not None:
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
                replies = send_batch(client, batch)
            except Exception as error:  # noqa: BLE001 (each caller gets it)
                replies = [error] * len(batch)
            for one, reply in zip(batch, replies, strict=True):
                one.reply = reply
                if one.done is not None:
                    one.done.set()


def send_batch(client: redis.Redis, batch: list[Store]) -> list[Any]:
    """One reply each: 1 stored, 0 not to be replaced, bytes to be judged, or an error.

    A notification of a state that may not replace a success reaches nobody who waits: they
    were told of the success, or find it when they look after subscribing.
    """
    new = [one for one in batch if not one.seen]
    words = [words for one in new for words in (one.first(), ["PUBLISH", one.key, one.value])]
    outcome: dict[int, Any] = {}
    for one, reply in zip(new, _all(client, words)[::2], strict=True):
        outcome[id(one)] = 1 if reply is True or reply == b"OK" else reply
    again = [one for one in batch if outcome.get(id(one)) is None]
    for one, reply in zip(again, _replace(client, again), strict=True):
        outcome[id(one)] = reply
    return [outcome[id(one)] for one in batch]


def _replace(client: redis.Redis, batch: list[Store]) -> list[Any]:
    replies = _all(client, [one.command() for one in batch])
    if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
        # Nothing was stored where the script is not known; elsewhere repeating does no harm.
        replies = _all(client, [one.command(text=True) for one in batch])
    return replies


def _all(client: redis.Redis, commands: list[list[Any]]) -> list[Any]:
    return send_all(client, commands) if commands else []
