"""Tasks that outlast the outage of what they need: retried, then degraded as their author says."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast, overload

import redis
from celery import Task as CeleryTask
from celery import current_task
from celery.exceptions import BackendError, Reject
from kombu.exceptions import OperationalError

from cloche.aio.task import is_coroutine_function
from cloche.backoff import Backoff
from cloche.errors import BrokerError, DatabaseError, SettingsError

logger = logging.getLogger("cloche.resilient")

P = ParamSpec("P")
R = TypeVar("R")

#: What is raised where a broker, a result backend or a database cannot be reached.
CONNECTION_ERRORS: tuple[type[BaseException], ...] = (
    ConnectionError,
    TimeoutError,
    OperationalError,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    BackendError,
    BrokerError,
    DatabaseError,
)
#: The same of databases, if their modules are imported at all: importing them takes long.
_DRIVERS = (
    *(("sqlalchemy.exc", name) for name in ("OperationalError", "InterfaceError")),
    *(("psycopg", name) for name in ("OperationalError", "InterfaceError")),
    *(("psycopg2", name) for name in ("OperationalError", "InterfaceError")),
    *(("asyncpg", name) for name in ("PostgresConnectionError", "InterfaceError")),
    ("pymysql", "OperationalError"),
)
#: Seconds between two retries at most, where they grow.
_LONGEST = 600.0


@dataclass(frozen=True, slots=True)
class Resilience:
    """``retries`` times, ``delay`` seconds apart (doubled each time if ``exponential``, spread
    by ``jitter``, a share from 0 to 1), then ``fallback(error, *args, **kwargs)``.

    Without a fallback the error fails the task. ``errors`` count besides those of connections.
    """

    retries: int = 3
    delay: float = 10.0
    exponential: bool = False
    jitter: float = 0.0
    fallback: Callable[..., Any] | None = None
    errors: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.retries < 0 or self.delay < 0 or not 0 <= self.jitter <= 1:
            raise SettingsError(
                f"resilient(retries={self.retries}, delay={self.delay}, jitter={self.jitter}) "
                "cannot be: retries and delay are not negative, jitter is from 0 to 1"
            )

    def pause(self, attempt: int) -> float:
        """Seconds before the retry number ``attempt``, counted from 1."""
        factor = 2.0 if self.exponential else 1.0
        limit = max(self.delay, _LONGEST)
        return Backoff(self.delay, factor, limit, jitter=self.jitter).delay(attempt)

    def covers(self, error: BaseException) -> bool:
        """Whether ``error``, or what it came from, is one of a connection."""
        kinds = (*CONNECTION_ERRORS, *_of_drivers(), *self.errors)
        return any(isinstance(one, kinds) for one in _chain(error))


def _of_drivers() -> Iterator[type[BaseException]]:
    for module, name in _DRIVERS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            yield kind


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its explicit causes."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


@overload
def resilient(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def resilient(
    *,
    retries: int = ...,
    delay: float = ...,
    exponential: bool = ...,
    jitter: float = ...,
    fallback: Callable[..., Any] | None = ...,
    errors: tuple[type[BaseException], ...] = ...,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def resilient(function: Callable[..., Any] | None = None, /, **policy: Any) -> Any:
    """Have the body of a task, ``def`` or ``async def``, outlast connection errors.

    Put it below the task decorator; arguments are those of :class:`Resilience`. Called outside
    of a worker the function is what it was.
    """
    resilience = Resilience(**policy)
    return (
        with_resilience(function, resilience)
        if function is not None
        else functools.partial(with_resilience, resilience=resilience)
    )


def with_resilience(body: Callable[P, R], resilience: Resilience) -> Callable[P, R]:
    """``body`` with that policy."""
    if is_coroutine_function(body):
        return cast(Callable[P, R], _awaited(cast(Any, body), resilience))

    @functools.wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return body(*args, **kwargs)
        except Exception as error:
            fallback = _retry_or_degrade(resilience, error)
            if fallback is None:
                raise
            return cast(R, fallback(error, *_given(args), **kwargs))

    return run


def _awaited(
    body: Callable[..., Awaitable[R]], resilience: Resilience
) -> Callable[..., Awaitable[R]]:
    @functools.wraps(body)
    async def run(*args: Any, **kwargs: Any) -> R:
        try:
            return await body(*args, **kwargs)
        except Exception as error:
            fallback = _retry_or_degrade(resilience, error)
            if fallback is None:
                raise
            outcome = fallback(error, *_given(args), **kwargs)
            return cast(R, await outcome if is_coroutine_function(fallback) else outcome)

    return run


def _given(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The task's own arguments: of a bound one without the task itself."""
    return args[1:] if args and isinstance(args[0], CeleryTask) else args


def _retry_or_degrade(resilience: Resilience, error: Exception) -> Callable[..., Any] | None:
    """The fallback to call; None if the error is to be raised. Raises Retry where one is left."""
    task = current_task
    if not task or task.request.called_directly or not resilience.covers(error):
        return None
    done = int(task.request.retries or 0)
    if done < resilience.retries:
        pause = resilience.pause(done + 1)
        logger.warning(
            "%s: retry %d of %d in %.1f s", _context(task, error), done + 1, resilience.retries,
            pause,
        )  # fmt: skip
        _retry(task, error, pause, resilience.retries)
    if resilience.fallback is None:
        logger.error("%s: given up after %d retries", _context(task, error), done, exc_info=error)
        return None
    logger.error(
        "%s: degraded to %s after %d retries", _context(task, error),
        getattr(resilience.fallback, "__qualname__", resilience.fallback), done, exc_info=error,
    )  # fmt: skip
    return resilience.fallback


def _retry(task: CeleryTask, error: Exception, pause: float, most: int) -> None:
    """Raises Retry. Where the broker is away itself, the message goes back to it instead:
    Celery would reject it for good (celery.app.task.Task.retry)."""
    try:
        raise task.retry(exc=error, countdown=pause, max_retries=most)
    except Reject as rejected:
        raise Reject(rejected.reason, requeue=True) from error


def _context(task: CeleryTask, error: BaseException) -> str:
    request = task.request
    return (
        f"{task.name}[{request.id}] on {request.hostname}, args={request.argsrepr or request.args}"
        f", kwargs={request.kwargsrepr or request.kwargs}, queue="
        f"{(request.delivery_info or {}).get('routing_key')}: {type(error).__name__}: {error}"
    )
