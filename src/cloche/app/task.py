"""The base class of tasks in applications made by :func:`cloche.create_app`.

Applications that are only hardened get the quick ``apply_async`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import celery

from cloche.aio.task import AsyncTask
from cloche.app.resilience import Resilience, with_resilience
from cloche.broker.publish_many import Published, map_delay, starmap_delay
from cloche.broker.publish_quick import quickly


class QuickTask(celery.Task):
    """Celery's task; calls without options are published from a template where that means the
    same."""

    abstract = True

    apply_async = quickly(celery.Task.apply_async)


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
    """Give the same ``apply_async`` to tasks of ``app`` whose class has Celery's own."""
    if app.Task.apply_async is celery.Task.apply_async:
        app.Task.apply_async = quickly(celery.Task.apply_async)
