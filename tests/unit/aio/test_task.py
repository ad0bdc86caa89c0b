"""@async_task: options, arguments and bodies are judged where they are written."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any

import celery
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import Celery, current_task, shared_task
from celery.canvas import chain
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Retry
from pydantic import BaseModel

from cloche.aio.task import (
    OPTIONS,
    AsyncTask,
    async_task,
    is_coroutine_function,
    is_coroutine_task,
    refuse_unawaited,
)
from cloche.app.task import Task as OurTask
from cloche.errors import CoroutineTaskError, TaskCancelledError


class Point(BaseModel):
    x: int


def test_an_unknown_option_is_refused_and_the_nearest_one_named() -> None:
    with pytest.raises(CoroutineTaskError, match=r"no option 'quue'[\s\S]*did you mean 'queue'\?"):

        @async_task(quue="mail")
        async def send() -> None: ...


def test_every_option_is_one_that_celery_reads() -> None:
    decorator = {
        *inspect.signature(Celery._task_from_fun).parameters,
        *("autoretry_for", "dont_autoretry_for", "retry_kwargs"),
        *("retry_backoff", "retry_backoff_max", "retry_jitter"),
        *("queue", "exchange", "routing_key"),  # celery.app.task.extract_exec_options
        *(name for name, _ in celery.Task.from_config),
    }
    assert [
        name for name in OPTIONS if name not in decorator and not hasattr(celery.Task, name)
    ] == []


def test_a_base_class_brings_options_of_its_own(app: Celery) -> None:
    class Tracked(AbortableTask):
        abstract = True
        owner = "nobody"

    @async_task(app=app, name="tracked", base=Tracked, owner="me")
    async def tracked() -> None: ...

    assert tracked.owner == "me"
    assert isinstance(tracked, AbortableTask)


def test_a_plain_function_is_refused() -> None:
    with pytest.raises(CoroutineTaskError, match=r"needs an async def, and .*send is none"):

        @async_task
        def send() -> None: ...


def test_a_function_that_is_a_task_already_is_refused(app: Celery) -> None:
    async def send() -> None: ...

    with pytest.raises(CoroutineTaskError, match="a task already"):
        async_task(app.task(send))


def test_wrong_arguments_fail_where_the_task_is_called(app: Celery) -> None:
    @async_task(app=app, name="add")
    async def add(x: int, y: int) -> int:
        return x + y

    app.conf.task_always_eager = False
    with pytest.raises(TypeError, match="'y'"):
        add.delay(1)
    with pytest.raises(TypeError, match="'y'"):
        add.s(1).apply_async()
    with pytest.raises(TypeError, match="'y'"):
        asyncio.run(add.adelay(1))
    with pytest.raises(TypeError, match="'z'"):
        asyncio.run(add.aapply_async([1, 2], {"z": 3}))


def test_eager_tasks_run_their_body(app: Celery) -> None:
    @async_task(app=app, name="add")
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y

    assert add.delay(1, 2).get() == 3
    assert add.apply([3, 4]).get() == 7
    assert add(5, 6) == 11
    assert chain(add.s(1, 2), add.s(10)).apply().get() == 13
    assert is_coroutine_task(add)


def test_a_bound_task_has_its_request_and_its_retries(app: Celery) -> None:
    @async_task(app=app, name="flaky", bind=True, max_retries=2, default_retry_delay=0)
    async def flaky(self: Any, wanted: int) -> tuple[str, int, bool]:
        await asyncio.sleep(0)
        if self.request.retries < wanted:
            raise self.retry()
        inner = await asyncio.create_task(request_of(self))
        return inner, self.request.retries, current_task.name == self.name

    async def request_of(task: Any) -> str:
        await asyncio.sleep(0)
        return str(task.request.id)

    result = flaky.apply([2], task_id="first")
    assert result.get() == ("first", 2, True)
    with pytest.raises((Retry, flaky.MaxRetriesExceededError)):
        flaky.apply([3], throw=True).get()


def test_autoretry_works_on_coroutines(app: Celery) -> None:
    tries = []

    @async_task(app=app, name="auto", autoretry_for=(OSError,), retry_backoff=0, max_retries=3)
    async def auto() -> int:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) < 3:
            raise OSError("not yet")
        return len(tries)

    assert auto.apply().get() == 3


def test_a_shared_task_belongs_to_every_application() -> None:
    @async_task(name="unit.shared", queue="mail")
    async def shared(x: int) -> int:
        return x + 1

    for number in range(2):
        with Celery(f"app{number}", broker="memory://", task_cls=OurTask) as app:
            app.set_current()
            assert shared.app is app
            assert shared.queue == "mail"
            assert isinstance(shared._get_current_object(), OurTask)
            assert shared.apply([number]).get() == number + 1


def test_models_are_validated_and_dumped(app: Celery) -> None:
    @async_task(app=app, name="moved", pydantic=True)
    async def moved(point: Point) -> Point:
        await asyncio.sleep(0)
        return Point(x=point.x + 1)

    assert moved.delay(Point(x=1)).get() == {"x": 2}


def test_a_class_with_an_async_run_is_a_coroutine_task(app: Celery) -> None:
    class Double(AsyncTask):
        name = "double"

        async def run(self, x: int) -> int:
            await asyncio.sleep(0)
            return 2 * x

    double = app.register_task(Double())
    assert double.apply([4]).get() == 8
    assert [*inspect.signature(double.run).parameters] == ["x"]


def test_an_async_def_of_our_applications_is_a_coroutine_task_by_itself() -> None:
    with Celery("ours", broker="memory://", task_cls=OurTask, set_as_current=False) as app:

        @app.task(name="plain")
        async def plain() -> str:
            return "ran"

        assert is_coroutine_task(app.tasks["plain"])
        assert plain.apply().get() == "ran"
        refuse_unawaited(app.tasks.values())


def test_an_async_def_that_nobody_would_await_is_named(app: Celery) -> None:
    @app.task(name="forgotten", autoretry_for=(OSError,))
    async def forgotten() -> None: ...

    with pytest.raises(CoroutineTaskError, match=r"^forgotten is .*\n.*\n.*@cloche.async_task"):
        refuse_unawaited(app.tasks.values())


async def _double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@functools.wraps(_double)
def _runs_it(number: int) -> Any:
    return asyncio.run(_double(number))


@functools.wraps(_double)
def _passes_it_on(number: int) -> Any:
    return _double(number)


def _twice(number: int) -> int:
    return 2 * number


class _Callable:
    async def __call__(self, number: int) -> int:
        return await _double(number)


def _named(function: Any) -> Any:
    """With what Celery asks of a task's body."""
    function.__name__, function.__module__, function.__annotations__ = "double", __name__, {}
    return function


@pytest.mark.parametrize(
    ("body", "is_coroutine"),
    [
        (_double, True),
        (_runs_it, False),
        (_passes_it_on, False),
        (_named(functools.partial(_double)), True),
        (_named(functools.partial(_runs_it)), False),
        (_named(_Callable()), True),
        (_named(sync_to_async(_twice)), True),
        (_named(async_to_sync(_double)), False),
    ],
    ids=["async", "runs", "passes", "partial", "partial runs", "object", "asgiref", "to sync"],
)
def test_a_body_is_what_calling_it_gives(body: Any, is_coroutine: bool) -> None:
    assert is_coroutine_function(body) is is_coroutine
    if isinstance(body, functools.partial):
        return  # Celery makes no task of one
    with Celery("bodies", broker="memory://", task_cls=OurTask, set_as_current=False) as app:
        app.task(name="double", shared=False, lazy=False)(body)
        double = app.tasks["double"]
        assert is_coroutine_task(double) is is_coroutine
        assert double.apply([4]).get() == 8, "and whatever gives a coroutine is waited for"


def test_a_wrapper_that_passes_a_coroutine_on_may_be_declared_as_one(app: Celery) -> None:
    double = async_task(_passes_it_on, app=app, name="passed")
    assert is_coroutine_task(double)
    assert double.apply([4]).get() == 8


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_of_the_class_is_around_the_body(app: Celery, asynchronous: bool) -> None:
    class Plain(AsyncTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["around", super().__call__(*args, **kwargs)]

    class Awaiting(AsyncTask):
        abstract = True

        async def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["around", await super().__call__(*args, **kwargs)]

    base = Awaiting if asynchronous else Plain
    double = async_task(_double, app=app, name=f"around {asynchronous}", base=base)
    assert double.apply([4]).get() == ["around", 8]
    assert double(4) == ["around", 8]


def test_a_cancellation_nobody_asked_for_is_the_failure_of_its_task(app: Celery) -> None:
    @async_task(app=app, name="stray")
    async def stray() -> None:
        inner = asyncio.create_task(asyncio.sleep(10))
        await asyncio.sleep(0)
        inner.cancel()
        await inner

    result = stray.apply()
    assert result.state == "FAILURE"
    assert isinstance(result.result, TaskCancelledError)


def test_celerys_own_decorators_stay_what_they_are(app: Celery) -> None:
    @shared_task(name="unit.sync")
    def sync() -> int:
        return 1

    app.set_current()
    assert sync.apply().get() == 1
