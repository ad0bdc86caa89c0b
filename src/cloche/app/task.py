"""The base class of tasks in applications made by :func:`cloche.create_app`.

Applications that are only hardened get the quick ``apply_async`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import celery

from cloche.aio.task import AsyncTask
from cloche.app.resilience import Resilience, with_resilience
from cloche.broker.publish.bulk import Published, map_delay, starmap_delay
from cloche.broker.publish.fast import send_quickly


def _quick(owner: Any) -> Any:
    """An ``apply_async`` for the class ``owner``."""

    def apply_async(
        self: Any, args: Any = None, kwargs: Any = None, *others: Any, **options: Any
    ) -> Any:
        """As Celery's; calls without options are published from a template where that means the
        same."""
        result = send_quickly(self, args, kwargs, others, options)
        if result is None:
            # Looked up now: others may have wrapped it since, and have to hear of each call.
            result = super(owner, self).apply_async(args, kwargs, *others, **options)
        return result

    apply_async.__dict__["cloche_quick"] = True
    return apply_async


class QuickTask(celery.Task):
    """Celery's task, quickly published."""

    abstract = True


QuickTask.apply_async = _quick(QuickTask)


class Task(AsyncTask, QuickTask):
    """Celery's task, for coroutines too, quickly published, and with bulk publish.

    On other brokers than ours it publishes as Celery does, one by one.
    """

    abstract = True
    #: A policy for connection errors, see :mod:`cloche.app.resilience`; True: the default one.
    resilient: bool | Resilience = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        policy, body = cls.__dict__.get("resilient"), cls.__dict__.get("run")
        if policy and body is not None:
            policy = policy if isinstance(policy, Resilience) else Resilience()
            function = getattr(body, "__func__", body)
            wrapped = with_resilience(function, policy)
            cls.run = staticmethod(wrapped) if isinstance(body, staticmethod) else wrapped
        super().__init_subclass__(**kwargs)

    def map_delay(self, items: Iterable[Any], **options: Any) -> Published:
        """Send one task per item, its only argument; ``options`` as ``apply_async`` takes.

        In chunks of a round trip each, of which each arrives whole or is reported.
        """
        return map_delay(self, items, **options)

    def starmap_delay(self, items: Iterable[Iterable[Any]], **options: Any) -> Published:
        """The same where each item is a tuple of all positional arguments."""
        return starmap_delay(self, items, **options)


def publish_quickly(app: celery.Celery) -> None:
    """Give the same ``apply_async`` to tasks of ``app`` whose class has Celery's own.

    Once there is such a class: ``task_cls`` may name one of a module that imports ``app``.
    """
    if "Task" in app.__dict__:
        _quicken(app.Task)
        return
    create = app.create_task_cls

    def create_task_cls() -> Any:
        """As Celery's."""
        return _quicken(create())

    app.create_task_cls = create_task_cls


def _quicken(task_class: Any) -> Any:
    if task_class.apply_async is celery.Task.apply_async:
        task_class.apply_async = _quick(task_class)
    return task_class
