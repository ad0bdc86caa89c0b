"""Sending tasks from coroutines without making the event loop wait for the broker."""

from __future__ import annotations

import contextvars
import sys
import time
from asyncio.events import _get_running_loop
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, cast

import celery
from celery.utils.log import get_logger

from cloche.aio import results
from cloche.aio.executor import in_new_thread, in_publisher

logger = get_logger(__name__)

#: Seconds a send may hold up a running loop before a warning names the line.
STALL_TIMEOUT = 0.05


class AsyncSending(celery.Task):
    """What a task gains: :meth:`adelay`, :meth:`aapply_async`, results with ``aget()``."""

    abstract = True

    async def adelay(self, *args: Any, **kwargs: Any) -> results.AsyncResult:
        """:meth:`delay` for coroutines."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> results.AsyncResult:
        """:meth:`apply_async` for coroutines: published in a thread, the loop goes on.

        Cancelled meanwhile, the task may have been sent or not.
        """
        context = contextvars.copy_context()  # so that the sending task is the sent one's parent
        send = super().apply_async

        def sent() -> Any:
            return context.run(send, args, kwargs, **options)

        eager = self._get_app().conf.task_always_eager
        result = await (in_new_thread if eager else in_publisher)(sent)
        return cast(results.AsyncResult, result)

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's. Called on an event loop it says so once if the loop had to wait long."""
        send = super().apply_async
        if _get_running_loop() is None:
            return send(*args, **kwargs)
        began = time.perf_counter()
        try:
            return send(*args, **kwargs)
        finally:
            self._stalled(time.perf_counter() - began)

    apply_async.__dict__["cloche_quick"] = True  # it adds nothing to the message

    def _stalled(self, seconds: float) -> None:
        app = self._get_app()
        if seconds > STALL_TIMEOUT and not app.conf.task_always_eager:
            file, line = _caller()
            _warn_once(self.name, file, line, round(seconds * 1000))

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; the result has ``aget()`` too."""
        return results.EagerResult.of(super().apply(*args, **kwargs))

    def AsyncResult(self, task_id: str, **kwargs: Any) -> results.AsyncResult:
        """The result of this task's run ``task_id``."""
        options = {"backend": self.backend, "task_name": self.name, **kwargs}
        return results.AsyncResult(task_id, app=self._get_app(), **options)


_warned: set[tuple[str, int]] = set()


def _warn_once(task: str, file: str, line: int, milliseconds: int) -> None:
    if (file, line) in _warned:
        return
    _warned.add((file, line))
    logger.warning(
        "%s:%d: sending %s held up the event loop for %d ms, and every coroutine with it: "
        "use `await task.adelay(...)` there (said once)",
        *(file, line, task, milliseconds),
    )


def _caller() -> tuple[str, int]:
    """File and line of the code that is neither Celery's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _INNER:
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "?", 0


_INNER = frozenset({"celery", "kombu", "cloche", "vine"})
