"""Waiting for results in coroutines: one connection per event loop, however many wait."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import redis
import redis.asyncio
from celery import states
from kombu.utils.encoding import ensure_bytes
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from cloche.backoff import Backoff
from cloche.process_local import ProcessLocal

#: Seconds between looks at the result itself, should a notification be lost.
LOOK_AGAIN = 5.0

#: What a lost connection raises; the next command connects again.
LOST = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)

_PAUSES = Backoff(first=0.1, factor=2, limit=1.0, jitter=0.3)

#: At most so many per event loop, one of them for notifications.
CONNECTIONS = 5

_waiters: ProcessLocal[
    weakref.WeakKeyDictionary[
        asyncio.AbstractEventLoop, weakref.WeakKeyDictionary[Any, ResultWaiter]
    ]
] = ProcessLocal(weakref.WeakKeyDictionary)


class ResultWaiter:
    """Subscribes to the results that coroutines of one event loop wait for."""

    def __init__(self, backend: Any) -> None:
        self._backend = weakref.proxy(backend)
        self._client = _connect(backend)
        self._subscribed = _Subscriptions(self._client)
        self._until_the_loop_ends: AsyncGenerator[None, None] | None = None

    @classmethod
    async def of(cls, backend: Any) -> ResultWaiter:
        """The running loop's waiter for ``backend``."""
        loop, known = asyncio.get_running_loop(), _waiters.get()
        if loop not in known:
            for ended in [one for one in list(known) if one.is_closed()]:
                known.pop(ended, None)
        of_loop = known.setdefault(loop, weakref.WeakKeyDictionary())
        if backend not in of_loop:
            found = of_loop[backend] = cls(backend)
            # asyncio ends the generators of a loop before it closes it: no task, which others
            # would wait for, lives on for this.
            found._until_the_loop_ends = _kept(loop, backend)
            await anext(found._until_the_loop_ends)
        return of_loop[backend]

    async def meta(self, task_id: str, seconds: float | None) -> dict[str, Any]:
        """The task's decoded state once it is final. Raises TimeoutError.

        Raises what redis-py raises once the server has been away for as many attempts as the
        backend's retry policy has.
        """
        key = ensure_bytes(self._backend.get_key_for_task(task_id))
        most = self._backend.retry_policy.get("max_retries")
        lost = 0
        async with asyncio.timeout(seconds):
            while True:
                try:
                    value = await self._next(key)
                except LOST:
                    lost += 1
                    if most is not None and lost > most:
                        raise
                    await asyncio.sleep(_PAUSES.delay(lost))
                    continue
                lost = 0
                meta: dict[str, Any] = self._backend.decode_result(value) if value else {}
                if meta and meta["status"] in states.READY_STATES:
                    return meta

    async def _next(self, key: bytes) -> bytes | None:
        """A final state if there is one, else the next notification, else what is stored."""
        subscribed = await self._connected()
        told: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        try:
            await subscribed.add(key, told)
            # Subscribed first, looked afterwards: a result stored in between is not missed.
            stored: bytes | None = await self._client.get(key)
            if stored and self._backend.decode_result(stored)["status"] in states.READY_STATES:
                return stored
            done, _ = await asyncio.wait({told}, timeout=LOOK_AGAIN)
            if not done:
                return await self._client.get(key)  # type: ignore[no-any-return]
            if told.result() is None:
                raise redis.exceptions.ConnectionError("the server closed the connection")
            return told.result()
        finally:
            await subscribed.remove(key, told)

    async def _connected(self) -> _Subscriptions:
        known = self._subscribed
        if known.over:
            self._subscribed = _Subscriptions(self._client)
            await known.close()
        return self._subscribed

    async def close(self) -> None:
        await self._subscribed.close()
        await self._client.aclose()
        await self._client.connection_pool.disconnect()


class _Subscriptions:
    """What coroutines wait for on one connection. It is ``over`` once that is lost: redis-py would
    connect again in whichever coroutine notices, while another one reads.
    """

    def __init__(self, client: Any) -> None:
        self.over = False
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        self._waiting: dict[bytes, set[asyncio.Future[bytes | None]]] = {}
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None

    async def add(self, key: bytes, told: asyncio.Future[bytes | None]) -> None:
        """Have ``told`` told what is published for ``key``; None: the connection was lost."""
        others = self._waiting.setdefault(key, set())
        others.add(told)
        if len(others) == 1:
            await self._send(self._pubsub.subscribe, key)
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read(), name="cloche-results")

    async def remove(self, key: bytes, told: asyncio.Future[bytes | None]) -> None:
        others = self._waiting.get(key, set())
        others.discard(told)
        if not others and self._waiting.pop(key, None) is not None and not self.over:
            with contextlib.suppress(*LOST):  # it must not take the place of a cancellation
                await self._send(self._pubsub.unsubscribe, key)

    async def _send(self, command: Callable[[bytes], Awaitable[None]], key: bytes) -> None:
        async with self._sending:
            if self.over:
                raise redis.exceptions.ConnectionError("the server closed the connection")
            try:
                await command(key)
            except LOST:
                self._lose()
                raise

    async def _read(self) -> None:
        while self._waiting and not self.over:
            try:
                message = await self._pubsub.get_message(timeout=1.0)
            except LOST:
                self._lose()
                return
            except redis.exceptions.RedisError:  # such as of an ACL: whoever waits looks itself
                await asyncio.sleep(0.2)
                continue
            if message and message["type"] == "message":
                self._tell(message["channel"], message["data"])

    def _lose(self) -> None:
        self.over = True
        for key in self._waiting:
            self._tell(key, None)

    def _tell(self, key: bytes, value: bytes | None) -> None:
        for told in self._waiting.get(key, ()):
            if not told.done():
                told.set_result(value)

    async def close(self) -> None:
        self._lose()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        async with self._sending:
            with contextlib.suppress(*LOST):
                await self._pubsub.aclose()


async def _kept(loop: asyncio.AbstractEventLoop, backend: Any) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        waiters = _waiters.get().get(loop)
        waiter = waiters.pop(backend, None) if waiters else None
        if waiter is not None:
            await waiter.close()


async def close(backend: Any) -> None:
    """Close the running loop's connections for ``backend``."""
    of_loop = _waiters.get().get(asyncio.get_running_loop())
    waiter = of_loop.pop(backend, None) if of_loop else None
    if waiter is not None:
        await waiter.close()


def _connect(backend: Any) -> Any:
    known = backend.client.connection_pool
    options = {
        name: value
        for name, value in known.connection_kwargs.items()
        if (name in _OPTIONS or name.startswith("ssl_")) and value is not None
    }
    # A lost connection raises at once; without this redis-py connects again before it raises.
    options["retry"] = Retry(NoBackoff(), 0, supported_errors=())
    if isinstance(known, redis.sentinel.SentinelConnectionPool):
        return _through_sentinel(known, options)
    if issubclass(known.connection_class, redis.SSLConnection):
        options["connection_class"] = redis.asyncio.SSLConnection
    elif issubclass(known.connection_class, redis.UnixDomainSocketConnection):
        options["connection_class"] = redis.asyncio.UnixDomainSocketConnection
    pool = redis.asyncio.BlockingConnectionPool(
        max_connections=CONNECTIONS, timeout=None, **options
    )
    return redis.asyncio.Redis(connection_pool=pool)


def _through_sentinel(pool: Any, options: dict[str, Any]) -> Any:
    manager = pool.sentinel_manager
    addresses = [
        (
            one.connection_pool.connection_kwargs["host"],
            one.connection_pool.connection_kwargs["port"],
        )
        for one in manager.sentinels
    ]
    if issubclass(pool.connection_class, redis.SSLConnection):
        options["ssl"] = True
    login = manager.sentinel_kwargs
    found: Any = Sentinel(addresses, sentinel_kwargs=login, **options)  # type: ignore[no-untyped-call]
    return found.master_for(pool.service_name)


#: Options the asynchronous connections take as well.
_OPTIONS = frozenset(
    {"host", "port", "path", "db", "username", "password", "client_name", "credential_provider"}
    | {"socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"}
)
