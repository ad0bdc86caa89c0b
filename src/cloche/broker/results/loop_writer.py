"""Results stored from an asyncio loop: those that come while a batch is on its way share the next.

Keys, bytes, notifications and the rule that a success is not overwritten are those of
:mod:`cloche.broker.results.redis_backend`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis
from celery import states
from celery.exceptions import BackendStoreError
from kombu.utils.encoding import bytes_to_str

from cloche.backoff import Backoff
from cloche.broker.connection.async_connection import AsyncConnection
from cloche.broker.connection.outage import ERRORS, Outage
from cloche.broker.results.store import PlainSuccess, StateWrite

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
        self._link = AsyncConnection(lambda error: None)
        self._waiting: list[_Pending] = []
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
        one = _Pending(StateWrite(key, value, int(seconds or 0)), loop.create_future())
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
        encoded = backend.encode_result(result, state)
        value: str | bytes = backend.encoded_state(task_id, encoded, state, traceback, request)
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

    async def _attempt(self, batch: list[_Pending]) -> BaseException:
        """Send; the error of those that have no reply after it."""
        try:
            if not self._link.open:
                await self._link.connect(self._pool)
            await self._send(batch)
        except ERRORS as error:
            self._link.close()
            return error
        return redis.exceptions.ConnectionError("the server takes no results now")

    async def _send(self, batch: list[_Pending]) -> None:
        text = False
        while batch:
            words = [one.store.command(text=text) for one in batch]
            unknown, judged = [], []
            for one, reply in zip(batch, await self._call(words), strict=True):
                if isinstance(reply, redis.exceptions.NoScriptError):
                    unknown.append(one)
                elif isinstance(reply, bytes):
                    if self._may_replace(one, reply):
                        judged.append(one)
                elif not (isinstance(reply, Exception) and self._passing(reply)):
                    one.reply = reply
            batch, text = unknown + judged, bool(unknown)

    def _may_replace(self, one: _Pending, found: bytes) -> bool:
        """Only the client can decode what is stored: a success stays."""
        try:
            if self._backend.is_success(found):
                one.reply = 0
                return False
        except Exception as error:  # noqa: BLE001 (as Celery's: what nobody can read is an error)
            one.reply = error
            return False
        one.store.judged(found)
        return True

    def _passing(self, error: BaseException) -> bool:
        """Whether to try again after this error."""
        passing: tuple[type[BaseException], ...] = (
            *self._backend.connection_errors,
            redis.exceptions.ReadOnlyError,
            redis.exceptions.OutOfMemoryError,
            redis.exceptions.BusyLoadingError,
        )
        return isinstance(error, passing) or str(error).startswith("MISCONF")

    async def _call(self, words: list[list[Any]]) -> list[Any]:
        future = self._link.send(words)
        try:
            return await asyncio.wait_for(future, OVERDUE_SECONDS)
        except TimeoutError:
            self._link.break_off(f"no reply within {OVERDUE_SECONDS} s")
            raise


class _Pending:
    """One state on its way, and who waits for it."""

    __slots__ = ("future", "reply", "store")

    def __init__(self, store: StateWrite, future: asyncio.Future[None]) -> None:
        self.store = store
        self.future = future
        self.reply: Any = _NOT_YET

    def settle(self) -> None:
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
