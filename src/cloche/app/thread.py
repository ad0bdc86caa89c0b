"""The threads pool of ``cloche worker``: threads do not wait for their results to be stored."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

from celery.concurrency import thread
from celery.concurrency.base import apply_target
from celery.concurrency.prefork import _run_ready_callbacks
from kombu.asynchronous import get_event_loop

from cloche.broker import results_later

#: Seconds between two looks at the timers while a stopping worker waits.
_TURN = 0.1


class TaskPool(thread.TaskPool):
    """Celery's, see :mod:`cloche.broker.results_later`. Other backends store as ever."""

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> thread.ApplyResult:
        """Run ``target`` in a thread."""
        found = self.executor.submit(_apply, target, args, kwargs, callback, accept_callback)
        return thread.ApplyResult(found)

    def on_stop(self) -> None:
        """Let running tasks end and their results be stored.

        Celery's waits here and does nothing else: a RabbitMQ that hears no heartbeat meanwhile
        closes the connection, and what has run runs again.
        """
        ending = Thread(target=self.executor.shutdown, kwargs={"cancel_futures": True})
        ending.start()
        hub = get_event_loop()
        while ending.is_alive():
            ending.join(_TURN)
            if hub is not None:
                hub.fire_timers()
                _run_ready_callbacks(hub)
        super().on_stop()
        results_later.drain(self.app)


def _apply(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    callback: Callable[..., Any],
    accept_callback: Callable[..., Any],
) -> None:
    with results_later.Deferring() as deferring:
        apply_target(target, args, kwargs, deferring.done(callback), accept_callback)
