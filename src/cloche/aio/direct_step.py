"""The consumer's step that puts the direct path in place, where the transport offers one."""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.consumer.tasks import Tasks

from cloche.aio.direct import DirectPath
from cloche.aio.direct_state import collect_less, make_walkable

logger = get_logger("cloche.aio")


class DirectStep(bootsteps.StartStopStep):
    """After Celery's ``Tasks``, which has made the consumer and not yet begun to consume."""

    requires = (Tasks,)
    name = "cloche.aio.direct_step.DirectStep"
    label = "DirectPath"

    def __init__(self, consumer: Any, **options: Any) -> None:
        self._path: DirectPath | None = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """A new connection: attach to its channel."""
        if not offered(consumer):
            return
        make_walkable()
        collect_less(consumer.pool.limit)
        self._path = DirectPath(consumer, consumer.pool.loop)
        self._path.start()
        logger.debug("tasks are fetched directly into the pool's loop")

    def stop(self, consumer: Any) -> None:
        """The connection broke or the worker ends: fetch no more."""
        if self._path is not None:
            self._path.quiet()
            if consumer.blueprint.state not in (bootsteps.CLOSE, bootsteps.TERMINATE):
                self._path.drop_unstarted()
                self._end()

    def shutdown(self, consumer: Any) -> None:
        """After the pool has ended: send what is left to send."""
        self._end()

    def _end(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            path.stop()

    def info(self, consumer: Any) -> dict[str, Any]:
        """For ``inspect stats``: messages that came directly, and that took Celery's way."""
        path = self._path
        return {"direct_path": path and {"plain": path.plain, "others": path.others}}


def offered(consumer: Any) -> bool:
    """Whether transport and pool can do it, and nobody has switched it off."""
    channel = consumer.task_consumer.channel
    return (
        hasattr(channel, "fetch_directly")
        and channel.direct_path
        and consumer.hub is not None
        and hasattr(consumer.pool, "loop")
    )
