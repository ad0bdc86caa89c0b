"""Celery's request for a message that came by the direct path.

The same class the stock strategy uses, made from an envelope that is decoded already: what
is equal for all messages of a task are class attributes, the rest is set without being parsed
again. Everything it does later (states, events, acknowledging) is Celery's own code.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from celery import Celery, Task
from celery.app.task import Context, get_actual_ignore_result
from celery.utils.imports import symbol_by_name
from celery.worker import state
from celery.worker.request import create_request_cls

from cloche.worker.state import forget

__all__ = ["Context", "context_of", "get_actual_ignore_result"]

#: What ``Context._get_custom_headers`` does not take for a header of the user's.
_CELERY_KEYS = frozenset(Context.__dict__) | {
    "lang", "task", "argsrepr", "kwargsrepr", "compression",
}  # fmt: skip

_lock = threading.Lock()

_NONE: list[Any] = []


def context_of(request: Mapping[str, Any], args: Any, kwargs: Any) -> Context:
    """``Context(request, args=args, called_directly=False, kwargs=kwargs)``.

    Celery computes the set of its own keys and takes it off a copy, for each request;
    here the set is computed once.
    """
    context = Context.__new__(Context)
    context.update(request, args=args, called_directly=False, kwargs=kwargs)
    if context.headers is None:
        context.headers = _own_headers(request)
    return context


#: Rows of keys none of which is a header of the user's: messages of a producer are alike.
_without_own: set[tuple[str, ...]] = set()


def _own_headers(request: Mapping[str, Any]) -> dict[str, Any] | None:
    row = tuple(request)
    if row in _without_own:
        return None
    own = {key: request[key] for key in request.keys() - _CELERY_KEYS}
    if own:
        return own
    if len(_without_own) < 100:
        _without_own.add(row)
    return None


class MessageSource(Protocol):
    """Where a request came from, and what becomes of its message."""

    def ack(self, tag: str) -> None:
        """It is done with."""

    def reject(self, tag: str, requeue: bool) -> None:
        """Back to its queue, or to the dead letters."""

    def message(self, envelope: dict[str, Any]) -> Any:
        """kombu's view of it, for those who ask."""

    def follow(self, followers: list[Any]) -> None:
        """Deliver what waited for its end."""

    def gone(self, tag: str) -> None:
        """Its run is over."""

    @property
    def doubtful(self) -> bool:
        """Whether the lease may be lost."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all requests of a consumer share."""

    app: Celery
    pool: Any
    hostname: str
    eventer: Any
    connection_errors: tuple[type[BaseException], ...]
    source: MessageSource


class FetchedRequest:
    """What a request of Celery's is made of here: ``(envelope, payload)``.

    ``envelope`` is the decoded message, its properties with the delivery tag; ``payload`` its
    decoded body: args, kwargs, embedded callbacks. Put before Celery's class of a task's requests
    by :func:`request_class`, which sets what is equal for all of them.
    """

    _app: Celery
    _task: Task
    _type: str
    _hostname: str
    _eventer: Any
    _connection_errors: tuple[type[BaseException], ...]
    _source: MessageSource

    _utc = True
    _decoded = True
    _content_type = _content_encoding = None
    _eta = _expires = None
    acknowledged: Any = False
    #: Messages of the same task that came while it ran; None: it is over.
    followers: list[Any] | None = _NONE

    # Celery's, in the class behind this one.
    _already_revoked: bool
    _terminate_on_ack: Any
    revoked: Any
    terminate: Any

    def __init__(self, envelope: dict[str, Any], payload: Any) -> None:
        headers = envelope["headers"]
        properties = envelope["properties"]
        info = properties["delivery_info"]
        found = headers.get
        self._envelope = envelope
        self._body = self._Request__payload = payload
        self.id = headers["id"]
        self.name = found("shadow") or self._type
        self._root_id = found("root_id")
        self._parent_id = found("parent_id")
        limits = found("timelimit")
        if limits:
            self.time_limits = limits
        self._argsrepr = found("argsrepr", "")
        self._kwargsrepr = found("kwargsrepr", "")
        ignored = found("ignore_result")
        self._ignore_result = self._task.ignore_result if ignored is None else ignored
        self._delivery_info = delivery = {
            "exchange": info.get("exchange"),
            "routing_key": info.get("routing_key"),
            "priority": properties.get("priority"),
            "redelivered": info.get("redelivered", False),
        }
        self._args, self._kwargs, embed = payload
        self._request_dict = request = {
            **headers,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": self._hostname,
            "delivery_info": delivery,
            "args": self._args,
            "kwargs": self._kwargs,
            "is_eager": False,
        }
        if embed:
            request.update(embed)
        self.tag = properties["delivery_tag"]

    @property
    def message(self) -> Any:
        """As kombu would have delivered it."""
        found = self.__dict__.get("_built")
        if found is None:
            found = self.__dict__["_built"] = self._source.message(self._envelope)
        return found

    @property
    def eventer(self) -> Any:
        """Ours: after a reconnect Celery tries to set its new dispatcher."""
        return self._eventer

    @eventer.setter
    def eventer(self, _: Any) -> None:
        pass

    def acknowledge(self) -> None:
        """As Celery's, without promises in between."""
        if not self.acknowledged:
            self.acknowledged = True
            self._source.ack(self.tag)

    @property
    def unwanted(self) -> bool:
        """Whether it was revoked since it came, or may not be ours: for Celery's code."""
        return self._already_revoked or self.id in state.revoked or self._source.doubtful

    def begins(self, pid: int, now: float) -> None:
        """As Celery's ``on_accepted``; ``now`` is Unix seconds."""
        task = self._task
        self.worker_pid = pid
        self.time_start = now
        state.requests[self.id] = self
        state.active_requests.add(self)
        state.total_count[self.name] += 1
        state.all_total_count[0] += 1
        if not task.acks_late:
            self.acknowledge()
        if task.send_events:
            self._eventer.send("task-started", uuid=self.id)
        if self._terminate_on_ack is not None:
            self.terminate(*self._terminate_on_ack)

    def on_success(self, told: Any, **options: Any) -> None:
        """As Celery's, for a plain success."""
        if told[0]:
            super().on_success(told, **options)  # type: ignore[misc]
            return
        task = self._task
        forget(self)
        if task.acks_late:
            self.acknowledge()
        if task.send_events:
            self._eventer.send("task-succeeded", uuid=self.id, result=told[1], runtime=told[2])

    def over(self) -> None:
        """Celery has been told how it ended."""
        with _lock:
            followers, self.followers = self.followers, None
        self._source.gone(self.tag)
        if followers:
            self._source.follow(followers)

    def take_follower(self, one: Any) -> bool:
        """Have ``one`` wait for our end; False if that has come."""
        with _lock:
            if self.followers is None:
                return False
            self.followers = [*self.followers, one]
            return True

    @property
    def on_ack(self) -> Any:
        """What Celery's tests and extensions may call."""
        return lambda *_: self._source.ack(self.tag)

    @property
    def _on_reject(self) -> Any:
        """What ``reject`` calls."""
        return lambda _, __, requeue: self._source.reject(self.tag, requeue)

    @property
    def _context(self) -> Context:
        found = self.__dict__.get("_context_made")
        if found is None:
            found = self.__dict__["_context_made"] = context_of(
                self._request_dict, self._args, self._kwargs
            )
        return found


def request_class(
    task: Task, setting: Setting, kind: type[FetchedRequest] = FetchedRequest
) -> type[Any]:
    """The class of ``task``'s requests: ``kind`` before the one that Celery's strategy makes."""
    stock = create_request_cls(
        symbol_by_name(task.Request),
        task,
        setting.pool,
        setting.hostname,
        setting.eventer,
        app=setting.app,
    )
    shared = {
        "_app": setting.app,
        "_task": task,
        "_type": task.name,
        "_hostname": setting.hostname,
        "_eventer": setting.eventer,
        "_connection_errors": setting.connection_errors,
        "_source": setting.source,
    }
    return type(f"{kind.__name__}({task.name})", (kind, stock), shared)


def received_fields(request: Any) -> Mapping[str, Any]:
    """What the event ``task-received`` tells (celery/worker/strategy.py)."""
    return {
        "uuid": request.id,
        "name": request.name,
        "args": request._argsrepr,
        "kwargs": request._kwargsrepr,
        "root_id": request._root_id,
        "parent_id": request._parent_id,
        "retries": request._request_dict.get("retries", 0),
        "eta": None,
        "expires": None,
    }
