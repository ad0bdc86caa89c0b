"""Results stored from an asyncio loop: those that come while a batch is on its way share the next.

Keys, bytes, notifications and the rule that a success is not overwritten are those of
:mod:`cloche.broker.results`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import redis
from celery import states
from celery.exceptions import BackendStoreError
from kombu.utils.encoding import bytes_to_str

from cloche.backoff import Backoff
from cloche.broker import lua
from cloche.broker.direct_link import Link
from cloche.broker.outage import ERRORS, Outage
from cloche.broker.results_bytes import PlainSuccess

logger = logging.getLogger("cloche.results")

#: Stores sent together at most.
BATCH = 500

#: Seconds a reply may take.
OVERDUE_SECONDS = 10

_PAUSES = Backoff(first=0.1, factor=2, limit=2.0, jitter=0.3)
_NOT_YET = object()


class ResultWriter:
    """Stores states for one backend, on the loop that runs :meth:`store`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._pool: redis.ConnectionPool = backend.client.connection_pool
        self._prefix: str = bytes_to_str(backend.get_key_for_task("x"))[:-1]
        self._link = Link(lambda error: None)
        self._waiting: list[_Store] = []
        self._sending: asyncio.Task[None] | None = None
        self._outage = Outage("storing results")
        self._success = PlainSuccess(backend)

    async def store(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
    ) -> None:
        """As ``backend.store_result``. Raises what that raises when it has given up."""
        value = self._value(task_id, result, state, traceback, request)
        backend = self._backend
        if len(value) > backend._MAX_STR_VALUE_SIZE:
            raise BackendStoreError(
                "value too large for Redis backend", state=state, task_id=task_id
            )
        seconds = backend.failure_expires if state == states.FAILURE else backend.expires
        key = self._prefix + task_id
        loop = asyncio.get_running_loop()
        one = _Store(key, value, int(seconds or 0), loop.create_future())
        self._waiting.append(one)
        if self._sending is None:
            self._sending = loop.create_task(self._send_all(), name="cloche-results")
        await one.future

    async def stop(self) -> None:
        """Wait for what is on its way, then close."""
        if self._sending is not None:
            await self._sending
        self._link.close()

    # -- the bytes

    def _value(
        self, task_id: str, result: Any, state: str, traceback: str | None, request: Any
    ) -> str | bytes:
        if state == states.SUCCESS and traceback is None:
            text = self._success.text(task_id, result, request)
            if text is not None:
                return text
        backend = self._backend
        meta = backend._get_result_meta(
            result=backend.encode_result(result, state),
            state=state,
            traceback=traceback,
            request=request,
        )
        meta["task_id"] = bytes_to_str(task_id)
        value: str | bytes = backend.encode(meta)
        return value

    # -- sending

    async def _send_all(self) -> None:
        await asyncio.sleep(0)  # all that end in this turn of the loop go together
        attempt = 0
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            error = await self._attempt(batch)
            left = [one for one in batch if one.reply is _NOT_YET and not one.future.done()]
            for one in batch:
                if one.reply is not _NOT_YET:
                    one.settle()
            if not left:
                attempt = 0
                self._outage.over()
                continue
            attempt += 1
            if self._gives_up(attempt):
                for one in left:
                    one.fail(error)
                continue
            self._waiting[:0] = left
            self._outage.failed(error)
            await asyncio.sleep(_PAUSES.delay(attempt))
        self._sending = None

    def _gives_up(self, attempt: int) -> bool:
        most = self._backend.retry_policy.get("max_retries")
        return most is not None and attempt > most

    async def _attempt(self, batch: list[_Store]) -> BaseException:
        """Send; the error of those that have no reply after it."""
        try:
            if not self._link.open:
                await self._link.connect(self._pool)
            await self._first(batch)
            while again := [one for one in batch if one.reply is None]:
                await self._replace(again)
        except ERRORS as error:
            self._link.close()
            return error
        return redis.exceptions.ConnectionError("the server takes no results now")

    async def _first(self, batch: list[_Store]) -> None:
        """The usual case: nothing is stored yet."""
        new = [one for one in batch if one.reply is _NOT_YET]
        words: list[Sequence[Any]] = []
        for one in new:
            limit = ("EX", one.seconds) if one.seconds else ()
            words.append(("SET", one.key, one.value, "NX", *limit))
            words.append(("PUBLISH", one.key, one.value))
        replies = await self._call(words)
        for one, reply in zip(new, replies[::2], strict=True):
            one.answer(reply, self._passing)

    async def _replace(self, batch: list[_Store]) -> None:
        """Where something is stored: the script decides whether it may be replaced."""
        text = False
        while batch:
            commands = [
                lua.STORE.command(
                    [one.key],
                    [one.value, one.seconds, one.seen],
                    text=text,
                )
                for one in batch
            ]
            replies = await self._call(commands)
            unknown = []
            for one, reply in zip(batch, replies, strict=True):
                if isinstance(reply, redis.exceptions.NoScriptError):
                    unknown.append(one)
                elif isinstance(reply, bytes):
                    one.judge(reply, self._backend)
                else:
                    one.answer(reply, self._passing)
            batch, text = unknown, True

    def _passing(self, error: BaseException) -> bool:
        """Whether to try again after this error."""
        passing: tuple[type[BaseException], ...] = (
            *self._backend.connection_errors,
            redis.exceptions.ReadOnlyError,
            redis.exceptions.OutOfMemoryError,
            redis.exceptions.BusyLoadingError,
        )
        return isinstance(error, passing) or str(error).startswith("MISCONF")

    async def _call(self, words: Sequence[Sequence[Any]]) -> list[Any]:
        future = self._link.send(words)
        try:
            return await asyncio.wait_for(future, OVERDUE_SECONDS)
        except TimeoutError:
            self._link.break_off(f"no reply within {OVERDUE_SECONDS} s")
            raise


class _Store:
    """One state on its way. ``reply``: not yet, None (something is stored), or final."""

    __slots__ = ("future", "key", "reply", "seconds", "seen", "value")

    def __init__(
        self, key: str, value: str | bytes, seconds: int, future: asyncio.Future[None]
    ) -> None:
        self.key = key
        self.value = value
        self.seconds = seconds
        self.seen = ""
        self.future = future
        self.reply: Any = _NOT_YET

    def answer(self, reply: Any, passing: Any) -> None:
        """What the server said; an error that passes leaves it unanswered."""
        self.reply = _NOT_YET if isinstance(reply, Exception) and passing(reply) else reply

    def judge(self, found: bytes, backend: Any) -> None:
        """Only the client can decode what is stored: a success stays."""
        if backend.decode_result(found)["status"] == states.SUCCESS:
            self.reply = 0
        else:
            self.seen = hashlib.sha1(found, usedforsecurity=False).hexdigest()
            self.reply = None

    def settle(self) -> None:
        """Tell who waits."""
        if self.future.done():
            return
        if isinstance(self.reply, BaseException):
            self.future.set_exception(self.reply)
        else:
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """It could not be stored."""
        if not self.future.done():
            self.future.set_exception(error)
