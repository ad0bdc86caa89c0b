"""The code that a call passes from ``apply_async`` to the channel: Celery's own, or somebody's.

Instrumentation (Sentry, ddtrace) and projects replace functions of Celery to add something to
each message, at any time. A message from a template would be without it.
"""

from __future__ import annotations

from types import FunctionType, ModuleType
from typing import Any

import celery
from celery import Celery, Task
from celery.app import amqp as celery_amqp
from celery.app import base as celery_base
from celery.app import routes as celery_routes
from celery.app import task as celery_task
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute, Router
from kombu import messaging
from kombu.messaging import Producer
from kombu.serialization import registry
from kombu.utils.json import dumps

from cloche.broker.publish.template import REPR_LEVELS, REPR_LIMIT


def functions(app: Celery, amqp: Any) -> tuple[Any, ...]:
    """What may be replaced while the process runs, as it is now: to be compared by identity."""
    own = amqp.__dict__
    return (
        app.__dict__.get("send_task"),
        type(app).send_task,
        celery.Task.apply_async,
        amqp,
        own.get("create_task_message"),
        own.get("send_task_message"),
        own.get("router"),
        AMQP.as_task_v2,
        Router.route,
        Producer.publish,
        Producer._publish,
        registry._encoders.get("json"),
    )


def is_celerys(app: Celery) -> bool:
    """Whether nothing but Celery makes and sends the messages of ``app``, in its usual format."""
    amqp = amqp_of(app)
    return (
        "send_task" not in app.__dict__
        and _is_of(type(app).send_task, celery_base)
        and _is_of(celery.Task.apply_async, celery_task)
        and type(amqp) is AMQP
        and _is_of(AMQP.as_task_v2, celery_amqp)
        and amqp.create_task_message == amqp.as_task_v2
        and "as_task_v2" not in amqp.__dict__
        and _is_of(amqp.send_task_message, celery_amqp)
        and type(amqp.router) is Router
        and _is_of(Router.route, celery_routes)
        and all(type(route) is MapRoute for route in amqp.routes)
        and (amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize) == (REPR_LIMIT, REPR_LIMIT)
        and app.conf.task_repr_maxlevels == REPR_LEVELS
        and amqp.Producer is Producer
        and _is_of(Producer.publish, messaging)
        and _is_of(Producer._publish, messaging)
        and registry._encoders["json"].encoder is dumps
    )


def sends_itself(task: Task) -> bool:
    """Whether ``task`` has an ``apply_async`` of its own, which must hear of each call."""
    function = task.__class__.apply_async  # of what a proxy stands for, too
    ours = "cloche_quick" in getattr(function, "__dict__", {})
    return "apply_async" in task.__dict__ or not (ours or _is_of(function, celery_task))


def amqp_of(app: Celery) -> Any:
    """``app.amqp``; Celery's properties take a lock."""
    return app.__dict__.get("amqp") or app.amqp


def _is_of(function: Any, module: ModuleType) -> bool:
    """Whether ``module`` defines it. Wrappers copy names and more, but not the globals."""
    return type(function) is FunctionType and function.__globals__ is vars(module)
