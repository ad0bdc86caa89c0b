"""A job of the direct path: the pool's job, made from the request instead of callbacks."""

from __future__ import annotations

from typing import Any

from cloche.aio.job import Job
from cloche.aio.run import Run

#: The pool's names of Celery's callbacks -> the request's methods.
_CALLBACKS = {
    "success": "on_success",
    "accept": "on_accepted",
    "error": "on_failure",
    "timeout": "on_timeout",
}


class DirectJob(Job):
    """Its request may be told of starts and successes in the loop's own thread."""

    direct = True

    def __init__(
        self,
        pool: Any,
        lane: Any,
        request: Any,
        trace: Any,
        soft: float | None,
        hard: float | None,
    ) -> None:
        self.pool, self.lane, self.trace = pool, lane, trace
        self.name, self.id, self.headers = request._type, request.id, request._request_dict
        self._request = request
        self.soft, self.hard = soft, hard
        self.run = Run()
        self.asyncio_task = self.thread = self.signum = None
        self.ended = self.settled = False

    @property
    def request(self) -> Any:
        """Celery's request."""
        return self._request

    def call(self, which: str, *args: Any) -> None:
        """Call one of the request's methods."""
        getattr(self._request, _CALLBACKS[which])(*args)

    def arguments(self, app: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Decoded already, what is embedded merged into the headers already."""
        request = self._request
        return request._args, request._kwargs, {}
