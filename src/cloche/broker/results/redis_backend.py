"""The result backend of ``cloche+redis://`` URLs: Celery's own, with fewer round trips.

Keys, values and notifications stay Celery's: stock clients read these results. Storing a state
is one call (stock: GET, then SETEX + PUBLISH); tasks that end in threads of a pool together share
it; sending a task need not subscribe to its result (``subscribe_on_call``).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

import redis
from celery import states
from celery.app import trace
from celery.app.base import Celery
from celery.backends import redis as stock
from celery.exceptions import BackendStoreError
from celery.utils.serialization import ensure_serializable
from kombu import Producer
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str

from cloche.broker import lua
from cloche.broker.connection import address
from cloche.broker.connection.commands import disconnect_idle
from cloche.broker.results import deferred as results_later
from cloche.broker.results.client import Cleanup, Client, PartReturn, is_repeated, repeated_by
from cloche.broker.results.loop_writer import ResultWriter
from cloche.broker.results.store import PlainSuccess, StateWrite
from cloche.broker.results.waiter import ResultWaiter
from cloche.process_local import here

#: Seconds the server remembers that a call has counted, so that a retry does not count again.
REMEMBER = 600


class _OneCall:
    """What both backends below do otherwise than Celery's."""

    app: Any
    client: Any
    always_retry: bool
    result_consumer: Any
    _pending_results: Any
    expires: int | None
    failure_expires: int | None
    _MAX_STR_VALUE_SIZE: int

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """As Celery's. Called by its tracer the body is over, and what is stored may be deferred;
        what a body stores itself is there when the call returns.
        """
        over = sys._getframe(1).f_globals is vars(trace)
        with results_later.body_over(over):
            super().mark_as_done(task_id, result, request, store_result, state)  # type: ignore[misc]

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Celery's; a plain success without its detours."""
        if state == states.SUCCESS and traceback is None and not self.always_retry:
            text = self._plain_success.text(task_id, result, request)
            if text is not None:
                self._keep(task_id, text, state, request)
                return result
        return super().store_result(  # type: ignore[misc]
            task_id, result, state, traceback=traceback, request=request, **kwargs
        )

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        value = self.encoded_state(task_id, result, state, traceback, request)
        self._keep(task_id, value, state, request)
        return result

    def encoded_state(
        self, task_id: str, result: Any, state: str, traceback: str | None, request: Any
    ) -> str | bytes:
        """What is stored; ``result`` went through ``encode_result``. Raises EncodeError.

        Arguments that came by another serializer (pickle) and that the one of results cannot
        carry are stored as their representation: the task runs, as it does where results do not
        tell of arguments (``result_extended``).
        """
        meta = self._get_result_meta(  # type: ignore[attr-defined]
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        encode: Callable[[Any], str | bytes] = self.encode  # type: ignore[attr-defined]
        try:
            return encode(meta)
        except EncodeError:
            if not meta.get("args") and not meta.get("kwargs"):
                raise
            args, kwargs = meta["args"] or (), meta["kwargs"] or {}
            shown = ensure_serializable(kwargs.values(), encode)
            meta["args"] = ensure_serializable(args, encode)
            meta["kwargs"] = dict(zip(map(str, kwargs), shown, strict=True))
            return encode(meta)

    def _keep(self, task_id: str, value: str | bytes, state: str, request: Any) -> None:
        if len(value) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError(
                "value too large for Redis backend", state=state, task_id=task_id
            )
        seconds = self.failure_expires if state == states.FAILURE else self.expires
        key = self.get_key_for_task(task_id)  # type: ignore[attr-defined]
        one = StateWrite(key, value, int(seconds or 0))
        if not results_later.deferred(self, one, state, request):
            self.ensure(self.store_now, (one,))

    @cached_property
    def _plain_success(self) -> PlainSuccess:
        return PlainSuccess(self)

    def store_now(self, one: StateWrite) -> None:
        """Store it unless a success is stored. Raises what redis-py raises."""
        while (found := one.send(self.client)) is not None and not self.is_success(found):
            one.judged(found)

    def is_success(self, stored: str | bytes) -> bool:
        """Whether what is stored, which the script could not read, is of a success."""
        return bool(self.decode_result(stored)["status"] == states.SUCCESS)  # type: ignore[attr-defined]

    # -- while connections are cut

    def _get_client(self) -> type[Client]:
        return Client

    def ensure(self, fun: Any, args: Any, **policy: Any) -> Any:
        """As Celery's; what it repeats is not repeated in itself."""
        if is_repeated():
            with repeated_by(None):
                return super().ensure(fun, args, **policy)  # type: ignore[misc]
        return super().ensure(fun, args, **policy)  # type: ignore[misc]

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        """As Celery's, but a cut connection costs no chord its body."""
        with repeated_by(super().ensure):  # type: ignore[misc]
            return super().on_chord_part_return(request, state, result, **kwargs)  # type: ignore[misc]

    @cached_property
    def _chord_part_return_script(self) -> PartReturn:
        return PartReturn(self.client.register_script(stock.CHORD_PART_RETURN_LUA))

    @cached_property
    def _chord_cleanup_script(self) -> Cleanup:
        return Cleanup(self.client.register_script(stock.CHORD_CLEANUP_LUA))

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """As Celery's."""
        self.incr(self.get_key_for_group(group_id, ".t"))  # type: ignore[attr-defined]

    def incr(self, key: str | bytes) -> int:
        """As Celery's; counts once, however often it has to be sent."""
        name = bytes_to_str(key)
        names = [name, f"{name}.{uuid4().hex}"]
        return int(self.ensure(lua.COUNT_ONCE.run, (self.client, names, [REMEMBER])))

    def expire(self, key: str | bytes, value: int) -> Any:
        """As Celery's."""
        return self.ensure(super().expire, (key, value))  # type: ignore[misc]

    def on_task_call(self, producer: Producer, task_id: str) -> None:
        """Listen for the result as Celery does, unless told that waiting is soon enough.

        ``result_backend_transport_options = {"subscribe_on_call": False}`` saves each publish a
        command: whoever waits for the result subscribes then, and looks afterwards.
        """
        if self.subscribes_on_call:
            super().on_task_call(producer, task_id)  # type: ignore[misc]

    @property
    def subscribes_on_call(self) -> bool:
        """Whether :meth:`on_task_call` does anything."""
        options = self.app.conf.result_backend_transport_options or {}
        return bool(options.get("subscribe_on_call", True))

    def remove_pending_result(self, result: Any) -> Any:
        """As Celery's; called for each result that nobody needs any more.

        Most were never waited for, where ``delay`` does not subscribe: nothing to do for them.
        """
        concrete, weak = self._pending_results
        if concrete or weak or self.result_consumer.subscribed_to:
            return super().remove_pending_result(result)  # type: ignore[misc]
        return result

    def release(self) -> None:
        """Give up its connections, unless somebody waits for a result of it.

        It goes on: it connects again when it is used again.
        """
        concrete, weak = self._pending_results
        if concrete or weak or "client" not in vars(self):
            return
        self.result_consumer.release()
        disconnect_idle(self.client)

    def writer(self) -> ResultWriter:
        """Stores states without blocking an event loop."""
        return ResultWriter(self)

    async def aget(
        self,
        task_id: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (as AsyncResult.get)
        propagate: bool = True,
    ) -> Any:
        """The task's result, waited for without blocking the event loop.

        Raises what the task raised (unless ``propagate`` is False: then the exception is
        returned) and TimeoutError after ``timeout`` seconds.
        """
        waiter = await ResultWaiter.of(self)
        meta = await waiter.meta(task_id, timeout)
        result = self.meta_from_decoded(meta)["result"]  # type: ignore[attr-defined]
        if propagate and meta["status"] in states.PROPAGATE_STATES:
            raise result if isinstance(result, BaseException) else RuntimeError(repr(result))
        return result


class ResultConsumer(stock.ResultConsumer):
    """Celery's, which does not connect in order to unsubscribe, nor listen on the socket of a
    parent process."""

    _pubsub: Any
    subscribed_to: set[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._process = here()
        self._parents: Any = None

    def _begin_anew(self) -> None:
        """After a fork: the parent listens on what we have, and its locks may be held for ever."""
        if self._process is not here():
            self._process = here()
            self._reset_sync()
            self._parents, self._pubsub = self._pubsub, None  # its end would wait for a lock, too

    def _listen_anew(self) -> None:
        """The same, and listen for the results that the parent listened for."""
        self._begin_anew()
        if self._parents is not None and self._pubsub is None and self.subscribed_to:
            self._ensure(self._reconnect_pubsub, ())

    def consume_from(self, task_id: str) -> None:
        """As Celery's."""
        self._listen_anew()
        super().consume_from(task_id)

    def drain_events(self, timeout: float | None = None) -> Any:
        """As Celery's."""
        self._listen_anew()
        return super().drain_events(timeout)

    def cancel_for(self, task_id: str) -> None:
        """As Celery's; results call it when they are destroyed, often along with all of this."""
        self._begin_anew()
        pubsub = self._pubsub
        if pubsub is not None and pubsub.connection is None:
            self.subscribed_to.discard(self._get_key_for_task(task_id))
            return
        super().cancel_for(task_id)

    def _reconnect_pubsub(self) -> None:
        """As Celery's, which leaves the connections before to the garbage collector."""
        with self._locked():
            if self._pubsub is not None:
                self._pubsub.close()
            disconnect_idle(self.backend.client)
            super()._reconnect_pubsub()

    def release(self) -> None:
        """Forget the connection; what is subscribed to then gets a new one."""
        with self._locked():
            pubsub, self._pubsub = self._pubsub, None
            self.subscribed_to.clear()
        if pubsub is not None:
            pubsub.close()


class _OfThread:
    """A backend of a thread that will end. Celery makes one for each thread that uses results, and
    leaves it, with its connections, to the garbage collector.
    """

    def __init__(self, backend: _OneCall) -> None:
        self._backend = weakref.ref(backend)
        self._process = here()

    def __del__(self) -> None:
        backend = self._backend()
        forked = self._process is not here()  # the connections are those of the parent's thread
        if backend is not None and not forked and not sys.is_finalizing():
            with contextlib.suppress(redis.exceptions.RedisError, OSError):
                backend.release()


class _Ends(threading.local):
    """Dropped when its thread ends."""

    def __init__(self) -> None:
        self.backends: list[_OfThread] = []


_ends = _Ends()


class RedisBackend(_OneCall, stock.RedisBackend):
    """``cloche+redis://``, ``cloche+rediss://``, ``cloche+socket://``."""

    ResultConsumer = ResultConsumer

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        given = address.parameters(url)  # first: it tells nothing of passwords where it fails
        where, _, query = url.partition("?")
        if where.startswith("unix://"):
            where = where.replace("unix", "socket", 1)
        # Celery looks at these; of the others it knows few types.
        seen = [pair for pair in parse_qsl(query) if pair[0] in _CHECKED]
        found: dict[str, Any] = super()._params_from_url(f"{where}?{urlencode(seen)}", defaults)
        if where.startswith("rediss://"):
            # Celery refuses rediss:// without ssl_cert_reqs; as for the broker the certificate
            # is verified unless the URL says otherwise.
            found.setdefault("ssl_cert_reqs", "required")
        if "credential_provider" in given:
            found.pop("username", None)
            found.pop("password", None)
        return address.fitting({**found, **given})


#: Options of TLS that Celery takes in a rediss:// URL only.
_CHECKED = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})


class SentinelBackend(_OneCall, stock.SentinelBackend):
    """``cloche+sentinel://``."""

    ResultConsumer = ResultConsumer
    _master_name: str | None = None

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        first = address.parameters(url.partition(self._SERVER_URI_SEPARATOR)[0])
        self._master_name = first.get("master_name")
        found: dict[str, Any] = super()._params_from_url(url, defaults)
        if url.startswith("sentinels://"):
            tls = {name: value for name, value in first.items() if name.startswith("ssl_")}
            found |= {"connection_class": self.connection_class_ssl, "ssl_cert_reqs": "required"}
            found |= tls
        return address.fitting(found)

    @cached_property
    def _transport_options(self) -> dict[str, Any]:
        """As Celery's; the URL may name the master."""
        options: dict[str, Any] = self.app.conf.get("result_backend_transport_options", {})
        return {"master_name": self._master_name, **options}


def backend(app: Celery, url: str | None = None, **kwargs: Any) -> RedisBackend | SentinelBackend:
    """What Celery calls for ``result_backend = "cloche+…://"`` (entry point)."""
    kind = SentinelBackend if (url or "").startswith("sentinel") else RedisBackend
    found: RedisBackend | SentinelBackend = kind(app=app, url=url, **kwargs)
    if not found.thread_safe and threading.current_thread() is not threading.main_thread():
        _ends.backends.append(_OfThread(found))
    return found


def needs_no_producer(backend: Any) -> bool:
    """Whether what it does for a result before its task is sent needs no producer."""
    return type(backend).on_task_call is _OneCall.on_task_call


def subscribes(backend: Any) -> bool:
    """Whether it wants to be told of each result before its task is sent."""
    return bool(getattr(backend, "subscribes_on_call", True))


async def aget(
    result: Any,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 (as AsyncResult.get)
    propagate: bool = True,
) -> Any:
    """``AsyncResult.get`` for coroutines; ``result`` must come from this backend."""
    return await result.backend.aget(result.id, timeout=timeout, propagate=propagate)
