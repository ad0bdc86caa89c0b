"""Waiting for results in coroutines: one connection per event loop, however many wait."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import redis
import redis.asyncio
from celery import states
from kombu.utils.encoding import ensure_bytes
from redis.asyncio.sentinel import Sentinel

#: Seconds between looks at the result itself, should a notification be lost.
LOOK_AGAIN = 5.0

#: At most so many per event loop, one of them for notifications.
CONNECTIONS = 5

_waiters: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, weakref.WeakKeyDictionary[Any, ResultWaiter]
] = weakref.WeakKeyDictionary()


class ResultWaiter:
    """Subscribes to the results that coroutines of one event loop wait for."""

    def __init__(self, backend: Any) -> None:
        self._backend = weakref.proxy(backend)
        self._client = _connect(backend)
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        self._waiting: dict[bytes, set[asyncio.Future[bytes]]] = {}
        self._subscribing = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, backend: Any) -> ResultWaiter:
        """The running loop's waiter for ``backend``."""
        of_loop = _waiters.setdefault(asyncio.get_running_loop(), weakref.WeakKeyDictionary())
        if backend not in of_loop:
            of_loop[backend] = cls(backend)
        return of_loop[backend]

    async def meta(self, task_id: str, seconds: float | None) -> dict[str, Any]:
        """The task's decoded state once it is final. Raises TimeoutError."""
        key = ensure_bytes(self._backend.get_key_for_task(task_id))
        async with asyncio.timeout(seconds):
            while True:
                value = await self._next(key)
                meta: dict[str, Any] = self._backend.decode_result(value) if value else {}
                if meta and meta["status"] in states.READY_STATES:
                    return meta

    async def _next(self, key: bytes) -> bytes | None:
        """A final state if there is one, else the next notification, else what is stored."""
        told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        others = self._waiting.setdefault(key, set())
        others.add(told)
        try:
            if len(others) == 1:
                async with self._subscribing:
                    await self._pubsub.subscribe(key)
                self._start_reader()
            # Subscribed first, looked afterwards: a result stored in between is not missed.
            stored: bytes | None = await self._client.get(key)
            if stored and self._backend.decode_result(stored)["status"] in states.READY_STATES:
                return stored
            done, _ = await asyncio.wait({told}, timeout=LOOK_AGAIN)
            return told.result() if done else await self._client.get(key)
        finally:
            others.discard(told)
            if not others and self._waiting.pop(key, None) is not None:
                async with self._subscribing:
                    await self._pubsub.unsubscribe(key)

    def _start_reader(self) -> None:
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(), name="cloche-results")

    async def _read(self) -> None:
        while self._waiting:
            try:
                message = await self._pubsub.get_message(timeout=1.0)
            except redis.exceptions.RedisError:
                await asyncio.sleep(0.2)  # redis-py connects and subscribes again
                continue
            if message and message["type"] == "message":
                for told in self._waiting.get(message["channel"], ()):
                    if not told.done():
                        told.set_result(message["data"])

    async def close(self) -> None:
        """Close its connections."""
        if self._reader is not None:
            self._reader.cancel()
        await self._pubsub.aclose()
        await self._client.aclose()
        await self._client.connection_pool.disconnect()


async def close(backend: Any) -> None:
    """Close the running loop's connections for ``backend``."""
    of_loop = _waiters.get(asyncio.get_running_loop())
    waiter = of_loop.pop(backend, None) if of_loop else None
    if waiter is not None:
        await waiter.close()


def _connect(backend: Any) -> Any:
    known = backend.client.connection_pool
    options = {
        name: value
        for name, value in known.connection_kwargs.items()
        if name in _OPTIONS and value is not None
    }
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
    found: Any = Sentinel(addresses, **options)  # type: ignore[no-untyped-call]
    return found.master_for(pool.service_name)


#: Options the asynchronous connections take as well.
_OPTIONS = frozenset(
    {"host", "port", "path", "db", "username", "password", "client_name", "credential_provider"}
    | {"socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"}
    | {"ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_check_hostname"}
)
