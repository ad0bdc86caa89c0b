"""The application of the pool's tests: its workers write what happens to a ledger.

The same bodies run on every pool: where the pool cannot run coroutines they are wrapped in
``asyncio.run``, which is what one does without Cloche.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from celery import Celery, bootsteps, current_task, signals
from celery.app import trace
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

app = Celery("jobs", broker=os.environ["JOBS_BROKER"], backend=os.environ["JOBS_BACKEND"])
app.conf.update(json.loads(os.environ["JOBS_CONF"]))
logger = get_task_logger(__name__)
ledger = os.open(os.environ["JOBS_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
coroutines = os.environ["JOBS_POOL"] == "asyncio"
build_tracer = trace.build_tracer


def wrapped_tracer(name: str, task: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """What instrumentation puts in the place of Celery's: around each run, and around the body."""
    if not getattr(task, "_wrapped_by_test", False):
        task.run, task._wrapped_by_test = _around(task.run, "body"), True
    return _around(build_tracer(name, task, *args, **kwargs), "tracer")


def _around(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        outside = _inside.get()
        token = _inside.set((*outside, what))
        try:
            return function(*args, **kwargs)
        finally:
            _inside.reset(token)

    return around


_inside: ContextVar[tuple[str, ...]] = ContextVar("inside", default=())
if os.environ.get("JOBS_WRAPPED"):
    trace.build_tracer = wrapped_tracer
tracer_before = trace.build_tracer


def note(word: str, *values: Any) -> None:
    """One line in the ledger."""
    os.write(ledger, (json.dumps([word, *values], default=repr) + "\n").encode())


def job(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``@app.task`` for a coroutine function, on any pool."""

    def register(body: Callable[..., Any]) -> Any:
        if coroutines or not inspect.iscoroutinefunction(body):
            return app.task(**options)(body)

        @functools.wraps(body)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(body(*args, **kwargs))

        del blocking.__wrapped__
        return app.task(**options)(blocking)

    return register


def listen(name: str, told: Any) -> None:
    def heard(sender: Any = None, **given: Any) -> None:
        request = given.get("request")
        uuid = given.get("task_id") or getattr(request, "id", None) or current_task.request.id
        shown = ("state", "retval", "result", "reason")
        facts: dict[str, Any] = {key: given[key] for key in shown if key in given}
        if name in ("failure", "retry"):
            facts["handled"] = sys.exc_info()[0]
        note("signal", uuid, name, {key: repr(value) for key, value in facts.items()})

    told.connect(heard, weak=False)


for name in ("prerun", "postrun", "success", "failure", "retry", "revoked", "internal_error"):
    listen(name, getattr(signals, f"task_{name}"))


class Hooked(app.Task):  # type: ignore[name-defined]
    """Every hook leaves a line."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        note("signal", task_id, "before_start", {})

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        note("signal", task_id, "on_success", {"retval": repr(retval)})

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        told = {"exc": repr(exc), "handled": repr(sys.exc_info()[0])}
        causes = re.findall(r"^\w+Error", einfo.traceback, re.MULTILINE)
        note("signal", task_id, "on_failure", {**told, "causes": causes})

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        handled = repr(sys.exc_info()[0])
        note("signal", task_id, "on_retry", {"exc": repr(exc), "handled": handled})

    def after_return(self, state: str, retval: Any, task_id: str, *rest: Any) -> None:
        note("signal", task_id, "after_return", {"state": state, "retval": repr(retval)})


@job()
async def nothing() -> None:
    return None


@job()
async def surroundings() -> tuple[str, ...]:
    """What this run has around it after an await, among many."""
    await asyncio.sleep(0.05)
    return _inside.get()


@job()
async def wait(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


_left = ContextVar("left", default="")


@job()
async def leaves(name: str) -> str:
    """What a run before it has left in its context; leaves its own name."""
    found = _left.get()
    _left.set(name)
    await asyncio.sleep(0.001)
    return found


@job()
async def census() -> dict[str, Any]:
    """This process's threads, and whether Celery's tracer is Celery's."""
    names = [thread.name for thread in threading.enumerate()]
    return {
        "threads": len(names),
        "names": names,
        "untouched": trace.build_tracer is tracer_before
        and build_tracer.__module__ == "celery.app.trace",
        "pid": os.getpid(),
    }


@job(base=Hooked)
async def add(x: float, y: float) -> float:
    await asyncio.sleep(0)
    return x + y


@job(base=Hooked)
async def total(values: list[float]) -> float:
    return sum(values)


@job(base=Hooked, bind=True)
async def heard(self: Any, *args: Any) -> int:
    """A link or an error callback."""
    return len(args)


@job(base=Hooked)
async def fail(text: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(text)


@job(base=Hooked, throws=(KeyError,))
async def expected() -> None:
    raise KeyError("expected")


@job(base=Hooked)
async def unstorable() -> object:
    return object()


@job(base=Hooked, bind=True, max_retries=2, default_retry_delay=0)
async def again(self: Any) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry(countdown=0.5)
    return int(self.request.retries)


@job(base=Hooked, bind=True, max_retries=1, default_retry_delay=0)
async def again_in_vain(self: Any) -> None:
    try:
        raise ValueError("in vain")
    except ValueError as error:
        raise self.retry(exc=error, countdown=0.5) from error


@job(
    base=Hooked, bind=True, autoretry_for=(ValueError,), retry_backoff=0.01, retry_jitter=False,
    max_retries=2,
)  # fmt: skip
async def by_itself(self: Any) -> int:
    await asyncio.sleep(0)
    if self.request.retries < 1:
        raise ValueError("not yet")
    return int(self.request.retries)


@job(base=Hooked, autoretry_for=(ValueError,), max_retries=1, retry_kwargs={"countdown": 0.5})
async def by_itself_in_vain() -> None:
    try:
        raise KeyError("first")
    except KeyError:
        raise ValueError("never")  # noqa: B904 (its context is to be told)


@job(base=Hooked)
async def ignore() -> None:
    raise Ignore


@job(base=Hooked)
async def reject() -> None:
    raise Reject("no", requeue=False)


@job(base=Hooked, ignore_result=True)
async def unheard() -> int:
    return 1


@job(base=Hooked, track_started=True)
async def tracked() -> int:
    return 1


@job(base=Hooked, bind=True)
async def replaced(self: Any) -> Any:
    raise self.replace(add.s(20, 22))


@job(base=Hooked, rate_limit="20/s")
async def slowly() -> float:
    return time.time()


@job(soft_time_limit=0.5)
async def soft(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded:
        note("soft")
        await asyncio.sleep(0.05)
        return "tidied up"
    return "slept"


@job(base=Hooked, soft_time_limit=0.5)
async def too_long() -> None:
    await asyncio.sleep(20)


@job()
async def stubborn(word: str) -> None:
    """Swallows every cancellation for a while."""
    end = time.monotonic() + 4
    while time.monotonic() < end:
        try:
            await asyncio.sleep(0.2)
        except BaseException:
            note("swallowed", word)
    note("late", word)


@job()
async def spin() -> str:
    while True:
        pass


@job()
async def block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 (that is the point)


@job()
async def leave(how: str) -> None:
    await asyncio.sleep(0.01)
    if how == "exit":
        sys.exit(3)
    if how == "memory":
        raise MemoryError("none left")
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@job()
async def tidy(word: str, seconds: float) -> None:
    note("began", word)
    try:
        await asyncio.sleep(seconds)
    finally:
        await asyncio.sleep(0.1)
        note("tidied", word)


@job(acks_late=True)
async def late(word: str, seconds: float) -> str:
    note("began", word)
    await asyncio.sleep(seconds)
    note("ended", word)
    return word


@job(acks_late=True)
async def held(word: str, gate: str) -> str:
    """Runs until there is a file ``gate``, however long the test takes to look at it."""
    note("began", word)
    while not os.path.exists(gate):  # noqa: ASYNC110, ASYNC240 (the gate is in another process)
        await asyncio.sleep(0.05)
    note("ended", word)
    return word


@job(acks_late=True)
async def kill() -> None:
    """End the whole worker by force."""
    os.kill(os.getpid(), signal.SIGKILL)


color: ContextVar[str] = ContextVar("color", default="none")


@job(bind=True)
async def identify(self: Any, number: int) -> list[Any]:
    """What this run sees of itself: after awaits, in a child task, in a thread."""
    color.set(f"color {number}")

    def seen() -> list[Any]:
        return [self.request.id, self.request.args[0], current_task.request.id, color.get()]

    async def child() -> list[Any]:
        await asyncio.sleep(0.01)
        return seen()

    found = [seen()]
    await asyncio.sleep(0.05 + number % 7 / 100)
    found.append(seen())
    found.append(await asyncio.create_task(child()))
    found.append(await asyncio.to_thread(seen))
    logger.warning("from run %d", number)
    return found


@app.task
def plain(seconds: float) -> list[Any]:
    began = time.monotonic()
    time.sleep(seconds)
    return [began, time.monotonic(), current_task.request.id]


@app.task(soft_time_limit=0.5)
def plain_soft() -> str:
    try:
        for _ in range(100):
            time.sleep(0.05)
    except SoftTimeLimitExceeded:
        return "tidied up"
    return "slept"


class Pulse(bootsteps.StartStopStep):
    """A timer in the consumer's loop, as the heartbeats of an AMQP connection are."""

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        hub.call_repeatedly(0.2, note, "pulse")


app.steps["worker"].add(Pulse)
