"""The application of every side: tasks of all kinds that play the script in their arguments.

Environment: ``DIFFERENTIAL_SIDE`` stock, celery (plain application on our URL) or cloche (hardened
or created); ``DIFFERENTIAL_URL`` the server; ``DIFFERENTIAL_LEDGER`` where to note;
``DIFFERENTIAL_PROFILE`` watched (signals have receivers) or quiet; ``DIFFERENTIAL_ASYNC`` 1 where
coroutines can run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Generator
from typing import Any

import celery
import redis
from celery import Celery, Task, current_task, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.worker.request import Request

import cloche
from tests.differential import calls, ledger
from tests.differential.values import Opaque, build, plain

SIDE = os.environ.get("DIFFERENTIAL_SIDE", "stock")
URL = os.environ.get("DIFFERENTIAL_URL", "redis://127.0.0.1:1/0")
PROFILE = os.environ.get("DIFFERENTIAL_PROFILE", "watched")
COROUTINES = os.environ.get("DIFFERENTIAL_ASYNC") == "1"
WATCHED = PROFILE == "watched"

#: Every key that hardening would fill in is the application's own, so that sides are alike.
CONF: dict[str, Any] = {
    "task_default_queue": "celery",
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json", "pickle", "yaml"],
    "result_expires": 3600,
    "result_extended": WATCHED,
    "task_acks_late": WATCHED,
    "task_reject_on_worker_lost": False,
    "task_retry_on_worker_lost": False,
    "task_track_started": not WATCHED,
    "task_send_sent_event": True,
    "worker_send_task_events": True,
    "worker_prefetch_multiplier": 16,
    "worker_max_tasks_per_child": None,
    "worker_max_memory_per_child": None,
    "worker_eta_task_limit": None,
    "worker_enable_soft_shutdown_on_idle": False,
    "worker_hijack_root_logger": True,
    "worker_redirect_stdouts": True,
    "broker_connection_retry_on_startup": True,
    # A canvas in a canvas holds a producer while it asks for the next: with Celery's ten, two dozen
    # threads can wait for each other for ever, on either side.
    "broker_pool_limit": 200,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "task_store_errors_even_if_ignored": False,
    "timezone": "UTC",
    "task_publish_retry_policy": {
        "max_retries": 3,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 1,
    },
    "beat_schedule": {},
}


def _application() -> Celery:
    if SIDE == "stock":
        made = Celery("d", broker=URL, backend=URL)
        made.conf.update(CONF)
        return made
    ours = f"cloche+{URL}"
    if SIDE == "celery":
        made = Celery("d", broker=ours, backend=ours)
        made.conf.update(CONF)
        return made
    if WATCHED:
        made = Celery("d", broker=URL, backend=URL)
        made.conf.update(CONF)
        cloche.harden(made)
        return made
    return cloche.create_app("d", broker=URL, backend=URL, changes=CONF)


app = _application()


class OwnError(Exception):
    """Takes more than its message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class Unpicklable(Exception):
    """Says other things than it takes."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} and {two}")
        self.opaque = lambda: None


ERRORS: dict[str, type[BaseException]] = {
    error.__name__: error
    for error in (
        ValueError, KeyError, OSError, RuntimeError, ZeroDivisionError, OwnError, Unpicklable,
        UnicodeError, SystemExit, AssertionError,
    )
}  # fmt: skip


def _store() -> redis.Redis:
    if getattr(ledger._local, "store_pid", None) != os.getpid():
        ledger._local.store_pid = os.getpid()
        ledger._local.store = redis.Redis.from_url(URL)
    found: redis.Redis = ledger._local.store
    return found


def stored(task_id: str) -> Any:
    """The state on the server now, by its bytes."""
    import json

    text = _store().get(f"celery-task-meta-{task_id}")
    if text is None:
        return None
    try:
        return json.loads(text)["status"]
    except ValueError:
        return "no JSON"


def request_of(task: Any) -> dict[str, Any]:
    """All that a body can see of its request."""
    return {key: plain(value) for key, value in vars(task.request).items() if key[0] != "_"}


def play(task: Any, values: Any, p: str, n: str, s: Any) -> Generator[float, None, Any]:
    """Do what the script says; yields the seconds to sleep, returns the result."""
    request = task.request
    retries = request.retries
    ledger.note(
        p, "body", n=n, id=request.id, at=time.time(), values=[ascii(value) for value in values],
        request=request_of(task), task=task.name,
        current=getattr(current_task, "name", None),
        current_id=getattr(current_task.request, "id", None) if current_task else None,
    )  # fmt: skip
    ended = "leave"
    try:
        for word, *rest in s or ():
            if word == "ret":
                return build(rest[0])
            if word == "raise":
                raise ERRORS[rest[0]](*build(rest[1]))
            if word == "raise_until":
                if retries < rest[0]:
                    raise ERRORS[rest[1]](*build(rest[2]))
            elif word == "retry":
                if retries < rest[0]:
                    how = build(rest[1])
                    if "exc" in how:
                        how["exc"] = ERRORS[how["exc"]]("for the retry")
                    ended = "retry"
                    wait = how.get("countdown", task.default_retry_delay)
                    ledger.note(
                        p, "retry", n=n, id=request.id, at=time.time(),
                        wait=None if request.is_eager else wait,
                    )  # fmt: skip
                    raise task.retry(**how)
            elif word == "state":
                task.update_state(state=rest[0], meta=build(rest[1]))
                ledger.note(p, "stored", n=n, id=request.id, state=stored(request.id))
            elif word == "state_of":
                task.update_state(task_id=f"{p}.{rest[0]}", state=rest[1], meta=build(rest[2]))
                ledger.note(p, "other", n=n, id=request.id, state=stored(f"{p}.{rest[0]}"))
            elif word == "store_of":
                task.backend.store_result(f"{p}.{rest[0]}", build(rest[2]), rest[1])
                ledger.note(p, "other", n=n, id=request.id, state=stored(f"{p}.{rest[0]}"))
            elif word == "done_of":
                task.backend.mark_as_done(f"{p}.{rest[0]}", build(rest[1]))
                ledger.note(p, "other", n=n, id=request.id, state=stored(f"{p}.{rest[0]}"))
            elif word == "peek":
                ledger.note(p, "peek", n=n, id=request.id, state=stored(request.id))
            elif word == "sleep":
                yield rest[0]
            elif word == "nap":
                try:
                    yield rest[0]
                except SoftTimeLimitExceeded:
                    return "soft"
            elif word == "call":
                made = calls.call(app, p, rest[0])
                ledger.note(p, "child", n=n, id=request.id, made=type(made).__name__)
            elif word == "forward":
                spec = {**rest[0], "o": dict(rest[0].get("o", {}))}
                spec["o"]["headers"] = request.headers
                calls.call(app, p, spec)
            elif word == "replace":
                raise task.replace(calls.canvas(app, p, rest[0]))
            elif word == "add_to_chord":
                task.add_to_chord(calls.canvas(app, p, rest[0]))
            elif word == "ignore":
                raise Ignore
            elif word == "reject":
                raise Reject("no", requeue=False)
            elif word == "requeue":
                if not (request.delivery_info or {}).get("redelivered"):
                    raise Reject("again", requeue=True)
            elif word == "event":
                task.send_event(rest[0], **build(rest[1]))
            elif word == "sub":
                sub = task.signature_from_request()
                ledger.note(p, "sub", n=n, id=request.id, options=sorted(sub.options))
            elif word == "state_read":
                ledger.note(p, "state_read", n=n, state=task.AsyncResult(request.id).state)
            else:
                raise NotImplementedError(word)
        return {"n": n, "v": ascii(tuple(values))}
    except BaseException as error:
        ended = f"{ended} {type(error).__name__}"
        raise
    finally:
        ledger.note(p, "end", n=n, id=request.id, how=ended)


def run(script: Generator[float, None, Any]) -> Any:
    """Play in a plain function."""
    try:
        delay = next(script)
        while True:
            try:
                # In slices: what ends a task in a thread is raised between two bytecodes.
                end_at = time.monotonic() + delay
                while (left := end_at - time.monotonic()) > 0:
                    time.sleep(min(left, 0.05))
            except BaseException as error:
                delay = script.throw(error)
            else:
                delay = next(script)
    except StopIteration as end:
        return end.value


async def arun(script: Generator[float, None, Any]) -> Any:
    """Play in a coroutine."""
    try:
        delay = next(script)
        while True:
            try:
                await asyncio.sleep(delay)
            except BaseException as error:
                delay = script.throw(error)
            else:
                delay = next(script)
    except StopIteration as end:
        return end.value


class Hooked(Task):
    """Notes its hooks and every call."""

    abstract = True

    def _hook(self, hook: str, kwargs: dict[str, Any], **facts: Any) -> None:
        if "p" in kwargs:
            ledger.note(
                kwargs["p"], "hook", n=kwargs.get("n"), id=self.request.id, hook=hook,
                retries=self.request.retries, stored=stored(self.request.id), **facts,
            )  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._hook("__call__", kwargs)
        return super().__call__(*args, **kwargs)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self._hook("before_start", kwargs, args=args)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self._hook("on_success", kwargs, args=args, retval=retval)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._hook("on_failure", kwargs, args=args, exc=exc, einfo=type(einfo).__name__)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._hook("on_retry", kwargs, args=args, exc=exc, einfo=type(einfo).__name__)

    def after_return(
        self, status: Any, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        self._hook("after_return", kwargs, args=args, status=status, retval=retval)


class OwnRequest(Request):
    """Notes what the worker tells it."""

    def _told(self, what: str, **facts: Any) -> None:
        if "p" in (self.kwargs or {}):
            ledger.note(
                self.kwargs["p"],
                "request",
                n=self.kwargs["n"],
                id=self.id,
                what=what,
                retries=self.request_dict.get("retries"),
                **facts,
            )

    def on_accepted(self, pid: Any, time_accepted: Any) -> None:
        self._told("on_accepted")
        super().on_accepted(pid, time_accepted)

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        self._told("on_success", failed=failed__retval__runtime[0])
        return super().on_success(failed__retval__runtime, **kwargs)

    def on_retry(self, exc_info: Any) -> Any:
        self._told("on_retry")
        return super().on_retry(exc_info)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        self._told("on_failure")
        return super().on_failure(exc_info, *args, **kwargs)


class Counted(Task):
    """A request class of its own, a changed apply_async."""

    abstract = True
    Request = OwnRequest

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        options["headers"] = {
            **(options.get("headers") or {}),
            "counted": str((kwargs or {}).get("n")),
        }
        return super().apply_async(args, kwargs, **options)


class Named(Task):
    """A shadow name made of the arguments."""

    abstract = True

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
        return f"shadow of {kwargs.get('n')}"


def _body(self: Any, *values: Any, p: str, n: str, s: Any = None, **more: Any) -> Any:
    return run(play(self, [*values, *sorted(more.items())], p, n, s))


#: Name → options of the declarations that share a body.
KINDS: dict[str, dict[str, Any]] = {
    "bound": {},
    "auto": {
        "autoretry_for": (KeyError, OSError),
        "retry_backoff": 1,
        "retry_jitter": False,
        "max_retries": 2,
    },
    "auto_soon": {
        "autoretry_for": (Exception,),
        "dont_autoretry_for": (ZeroDivisionError,),
        "retry_kwargs": {"countdown": 0.3, "max_retries": 2},
    },
    "once": {"max_retries": 1, "default_retry_delay": 0.3},
    "ignored": {"ignore_result": True},
    "ignored_errors": {"ignore_result": True, "store_errors_even_if_ignored": True},
    "tracked": {"track_started": True},
    "early": {"acks_late": False},
    "late": {"acks_late": True},
    "late_errors": {"acks_late": True, "acks_on_failure_or_timeout": False},
    "limited": {"soft_time_limit": 0.4, "time_limit": 1.2},
    "rated": {"rate_limit": "200/s"},
    "pickled": {"serializer": "pickle"},
    "yaml": {"serializer": "yaml"},
    "zipped": {"compression": "gzip"},
    "loose": {"typing": False},
    "hooked": {"base": Hooked},
    "counted": {"base": Counted},
    "named": {"base": Named},
    "expected": {"throws": (ValueError, OwnError)},
    "expiring": {"expires": 30},
    "first": {"priority": 9},
    "unheard": {"send_events": False},
}
for _name, _options in KINDS.items():
    app.task(name=f"d.{_name}", bind=True, **{"max_retries": 3, **_options})(_body)


@app.task(name="d.plain")
def plain_task(*values: Any, p: str, n: str, s: Any = None) -> Any:
    return run(play(current_task, values, p, n, s))


@app.task(name="d.typed", bind=True)
def typed(self: Any, one: Any, two: Any = 2, *, p: str, n: str, s: Any = None) -> Any:
    return run(play(self, (one, two), p, n, s))


@app.task(name="d.item", bind=True)
def item(self: Any, value: Any) -> Any:
    ledger.note(value["p"], "item", n=value["n"], v=ascii(value), request=request_of(self))
    return [value["n"], value["v"]]


@app.task(name="d.errback", bind=True)
def errback(self: Any, request: Any, exc: Any, trace: Any, *, p: str, n: str, s: Any = None) -> Any:
    """As an error callback in the worker's own process, and as a task."""
    ledger.note(
        p, "errback", n=n, id=self.request.id,
        request=getattr(request, "id", None), exc=exc, trace=type(trace).__name__,
    )  # fmt: skip


@app.task(name="d.errback_id", bind=True)
def errback_id(self: Any, request: Any, *, p: str, n: str, s: Any = None) -> Any:
    """Of the old kind: told an id, run as a task."""
    return run(play(self, (str(type(request).__name__),), p, n, s))


if COROUTINES and SIDE != "stock":
    _base: dict[str, Any] = {"base": cloche.AsyncTask}

    async def _abody(self: Any, *values: Any, p: str, n: str, s: Any = None) -> Any:
        return await arun(play(self, values, p, n, s))

    class AHooked(Hooked, cloche.AsyncTask):
        abstract = True

    app.task(name="d.co", bind=True, max_retries=3, **_base)(_abody)
    app.task(name="d.co_hooked", bind=True, max_retries=3, base=AHooked)(_abody)
    app.task(
        name="d.co_limited", bind=True, max_retries=3, soft_time_limit=0.4, time_limit=1.2, **_base
    )(_abody)
    app.task(
        name="d.co_auto", bind=True, autoretry_for=(KeyError, OSError), retry_backoff=1,
        retry_jitter=False, max_retries=2, **_base,
    )(_abody)  # fmt: skip
else:
    app.task(name="d.co", bind=True, max_retries=3)(_body)
    app.task(name="d.co_hooked", bind=True, max_retries=3, base=Hooked)(_body)
    app.task(name="d.co_limited", bind=True, max_retries=3, **KINDS["limited"])(_body)
    app.task(name="d.co_auto", bind=True, **KINDS["auto"])(_body)


def _watch() -> None:
    """Note every signal of tasks, with its arguments."""

    def of(kwargs: Any) -> tuple[str, str] | None:
        named = isinstance(kwargs, dict) and "p" in kwargs
        return (kwargs["p"], kwargs["n"]) if named else None

    def note(signal: str, who: tuple[str, str] | None, task_id: Any, sender: Any, kw: Any) -> None:
        if who is None:
            return
        facts = {key: _shown(value) for key, value in kw.items() if key != "signal"}
        ledger.note(
            who[0], "signal", n=who[1], id=task_id, signal=signal, facts=facts,
            sender=getattr(sender, "name", None) or type(sender).__name__,
            where="producer" if PRODUCER else "worker",
            retries=getattr(getattr(sender, "request", None), "retries", None),
            stored=stored(task_id) if signal in AFTER and task_id else None,
        )  # fmt: skip

    def prerun(sender: Any = None, **kw: Any) -> None:
        note("task_prerun", of(kw["kwargs"]), kw["task_id"], sender, kw)

    def postrun(sender: Any = None, **kw: Any) -> None:
        note("task_postrun", of(kw["kwargs"]), kw["task_id"], sender, kw)

    def success(sender: Any = None, **kw: Any) -> None:
        note("task_success", of(sender.request.kwargs), sender.request.id, sender, kw)

    def failure(sender: Any = None, **kw: Any) -> None:
        note("task_failure", of(kw["kwargs"]), kw["task_id"], sender, kw)

    def retry(sender: Any = None, **kw: Any) -> None:
        note("task_retry", of(kw["request"].kwargs), kw["request"].id, sender, kw)

    def internal(sender: Any = None, **kw: Any) -> None:
        note("task_internal_error", of(kw["kwargs"]), kw["task_id"], sender, kw)

    def received(sender: Any = None, **kw: Any) -> None:
        note("task_received", of(kw["request"].kwargs), kw["request"].id, sender, kw)

    def revoked(sender: Any = None, **kw: Any) -> None:
        note("task_revoked", of(kw["request"].kwargs), kw["request"].id, sender, kw)

    def before(sender: Any = None, **kw: Any) -> None:
        who = _of_message(kw["body"])
        note("before_task_publish", who, kw["headers"].get("id"), sender, kw)

    def after(sender: Any = None, **kw: Any) -> None:
        who = _of_message(kw["body"])
        note("after_task_publish", who, kw["headers"].get("id"), sender, kw)

    def _of_message(body: Any) -> tuple[str, str] | None:
        if isinstance(body, dict):
            return of(body.get("kwargs"))
        return of(body[1]) if isinstance(body, tuple | list) and len(body) > 1 else None

    for name, receiver in {
        "task_prerun": prerun, "task_postrun": postrun, "task_success": success,
        "task_failure": failure, "task_retry": retry, "task_internal_error": internal,
        "task_received": received, "task_revoked": revoked,
        "before_task_publish": before, "after_task_publish": after,
    }.items():  # fmt: skip
        getattr(signals, name).connect(receiver, weak=False)


AFTER = {"task_postrun", "task_success", "task_failure", "task_retry"}
PRODUCER = os.environ.get("DIFFERENTIAL_ROLE") == "producer"


def _shown(value: Any) -> Any:
    if isinstance(value, Task):
        return value.name
    if type(value).__name__ in ("Context", "Request", "OwnRequest") or hasattr(value, "task_id"):
        return f"<request> {getattr(value, 'id', None)}"
    if type(value).__name__ == "ExceptionInfo":
        return {"einfo": plain(value.exception), "type": str(value.type)}
    if isinstance(value, Opaque):
        return repr(value)
    return plain(value)


class Noting(logging.Handler):
    """Notes the records of the worker that name a task."""

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, dict) and (task_id := record.args.get("id")):
            ledger.client().rpush(
                "logged",
                f"{task_id}\n{record.name}\n{record.levelname}\n{record.msg}",
            )


if not PRODUCER and WATCHED:
    for _logger in ("celery.app.trace", "celery.worker.strategy", "celery.worker.request"):
        logging.getLogger(_logger).addHandler(Noting())
if WATCHED:
    _watch()
assert celery
assert sys
