"""Results that coroutines can wait for."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import celery.result
from celery import states

from cloche.backoff import Backoff
from cloche.process_local import ProcessLocal

#: Seconds between looks at a result, on backends that cannot tell coroutines of it.
LOOK_AGAIN = Backoff(first=0.01, factor=1.5, limit=0.5)


async def aget(
    result: Any,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 (as AsyncResult.get)
    propagate: bool = True,
) -> Any:
    """``result.get()`` for coroutines: of a task, or (a list) of a group.

    Raises what the task raised (unless ``propagate`` is False: then the exception is returned)
    and TimeoutError after ``timeout`` seconds. Cloche's result backend tells when it is there;
    others are asked again and again, in one thread of the process.
    """
    if isinstance(result, celery.result.EagerResult):
        return _value(result.state, result.result, propagate)
    if isinstance(result, celery.result.ResultSet):
        async with asyncio.timeout(timeout):
            parts = (aget(part, propagate=propagate) for part in result.results)
            return list(await asyncio.gather(*parts))
    if hasattr(result.backend, "aget"):
        return await result.backend.aget(result.id, timeout=timeout, propagate=propagate)
    async with asyncio.timeout(timeout):
        meta = await _looked_up(result)
    return _value(meta["status"], meta["result"], propagate)


class AsyncResult(celery.result.AsyncResult):
    """Celery's, with :meth:`aget`."""

    async def aget(
        self,
        timeout: float | None = None,  # noqa: ASYNC109
        propagate: bool = True,
    ) -> Any:
        """:func:`aget` of this result."""
        return await aget(self, timeout=timeout, propagate=propagate)


class EagerResult(celery.result.EagerResult):
    """The result of a task that ran right here, with the same :meth:`aget`."""

    aget = AsyncResult.aget

    @classmethod
    def of(cls, result: celery.result.EagerResult) -> EagerResult:
        """``result`` as one of these."""
        return result if isinstance(result, cls) else cls(*result.__reduce_args__())


async def _looked_up(result: Any) -> dict[str, Any]:
    loop, tries = asyncio.get_running_loop(), 0
    while True:
        look = partial(result.backend.get_task_meta, result.id)
        meta: dict[str, Any] = await loop.run_in_executor(_reader.get(), look)
        if meta["status"] in states.READY_STATES:
            return meta
        tries += 1
        await asyncio.sleep(LOOK_AGAIN.delay(tries))


def _value(state: str, value: Any, propagate: bool) -> Any:
    if propagate and state in states.PROPAGATE_STATES:
        raise value if isinstance(value, BaseException) else RuntimeError(repr(value))
    return value


_reader = ProcessLocal(lambda: ThreadPoolExecutor(1, "cloche-results"))
