"""The result backend of ``cloche+redis://`` URLs: Celery's own, with fewer round trips.

Keys, values and notifications stay Celery's: stock clients read these results. Storing a state
is one call (stock: GET, then SETEX + PUBLISH); calls of threads that finish together share a
round trip; sending a task need not subscribe to its result (``subscribe_on_call``).
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

from celery import states
from celery.app.base import Celery
from celery.backends import redis as stock
from celery.exceptions import BackendStoreError
from kombu.utils.encoding import bytes_to_str

from cloche.broker import results_later
from cloche.broker.direct_results import ResultWriter
from cloche.broker.results_bytes import PlainSuccess
from cloche.broker.results_commit import GroupCommit, Store
from cloche.broker.results_waiting import ResultWaiter


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
        meta = self._get_result_meta(  # type: ignore[attr-defined]
            result=result, state=state, traceback=traceback, request=request
        )
        meta["task_id"] = bytes_to_str(task_id)
        self._keep(task_id, self.encode(meta), state, request)  # type: ignore[attr-defined]
        return result

    def _keep(self, task_id: str, value: str | bytes, state: str, request: Any) -> None:
        if len(value) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError(
                "value too large for Redis backend", state=state, task_id=task_id
            )
        seconds = self.failure_expires if state == states.FAILURE else self.expires
        key = self.get_key_for_task(task_id)  # type: ignore[attr-defined]
        one = Store(key, value, int(seconds or 0))
        if not results_later.deferred(self, one, state, request):
            self.ensure(self.store_now, (one.key, one.value, one.seconds))  # type: ignore[attr-defined]

    @cached_property
    def _plain_success(self) -> PlainSuccess:
        return PlainSuccess(self)

    def store_now(self, key: str | bytes, value: str | bytes, seconds: int) -> None:
        """Store it unless a success is stored. Raises what redis-py raises."""
        found = self._commit.store(self.client, Store(key, value, seconds))
        while isinstance(found, bytes):
            if self.decode_result(found)["status"] == states.SUCCESS:  # type: ignore[attr-defined]
                return
            seen = hashlib.sha1(found, usedforsecurity=False).hexdigest()
            found = self._commit.store(self.client, Store(key, value, seconds, seen))

    @property
    def _commit(self) -> GroupCommit:
        commit = self.__dict__.get("_group_commit")
        if commit is None or commit.forked:
            commit = self.__dict__["_group_commit"] = GroupCommit()
        return commit

    def on_task_call(self, producer: Any, task_id: str) -> None:
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
        meta = await ResultWaiter.of(self).meta(task_id, timeout)
        result = self.meta_from_decoded(meta)["result"]  # type: ignore[attr-defined]
        if propagate and meta["status"] in states.PROPAGATE_STATES:
            raise result if isinstance(result, BaseException) else RuntimeError(repr(result))
        return result


class ResultConsumer(stock.ResultConsumer):
    """Celery's, which does not connect in order to unsubscribe."""

    def cancel_for(self, task_id: str) -> None:
        """As Celery's; results call it when they are destroyed, often along with all of this."""
        pubsub = self._pubsub
        if pubsub is not None and pubsub.connection is None:
            self.subscribed_to.discard(self._get_key_for_task(task_id))
            return
        super().cancel_for(task_id)


class RedisBackend(_OneCall, stock.RedisBackend):
    """``cloche+redis://``, ``cloche+rediss://``, ``cloche+socket://``."""

    ResultConsumer = ResultConsumer

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        # Celery refuses rediss:// without ssl_cert_reqs; as for the broker the certificate is
        # verified unless the URL says otherwise.
        found: dict[str, Any] = super()._params_from_url(url, defaults)
        if url.startswith("rediss://"):
            found.setdefault("ssl_cert_reqs", "required")
            if "ssl_check_hostname" in found:
                found["ssl_check_hostname"] = str(found["ssl_check_hostname"]).lower() != "false"
        return found


class SentinelBackend(_OneCall, stock.SentinelBackend):
    """``cloche+sentinel://``."""

    ResultConsumer = ResultConsumer


def backend(app: Celery, url: str | None = None, **kwargs: Any) -> RedisBackend | SentinelBackend:
    """What Celery calls for ``result_backend = "cloche+…://"`` (entry point)."""
    kind = SentinelBackend if (url or "").startswith("sentinel") else RedisBackend
    found: RedisBackend | SentinelBackend = kind(app=app, url=url, **kwargs)
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
