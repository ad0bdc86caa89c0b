"""The base class of tasks in applications made by :func:`cloche.create_app`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cloche.aio.task import AsyncTask
from cloche.broker.publish_many import Published, map_delay, starmap_delay


class Task(AsyncTask):
    """Celery's task for coroutines too, and with bulk publish.

    On other brokers than ours it publishes one by one.
    """

    abstract = True

    def map_delay(self, items: Iterable[Any], **options: Any) -> Published:
        """Send one task per item, its only argument; ``options`` as ``apply_async`` takes.

        In chunks of a round trip each, of which each arrives whole or is reported.
        """
        return map_delay(self, items, **options)

    def starmap_delay(self, items: Iterable[Iterable[Any]], **options: Any) -> Published:
        """The same where each item is a tuple of all positional arguments."""
        return starmap_delay(self, items, **options)
