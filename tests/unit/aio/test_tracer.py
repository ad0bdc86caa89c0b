"""The tracer by itself, as the direct path uses it: no worker, no broker, a backend in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from celery import Celery, current_task, signals, states
from celery.backends.cache import CacheBackend

from cloche.aio import loop_backend, tracer
from cloche.aio import task_stacks as stacks
from cloche.aio.bridge import Nestable
from cloche.aio.driving import FINISHED, REVOKED, CoroutineRun, Drive
from cloche.aio.executor import Writers
from cloche.aio.task import runs_coroutines


@pytest.fixture
def app() -> Iterator[Celery]:
    own = Celery("traced", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield own
    own.close()


def _request(uuid: str, **more: Any) -> dict[str, Any]:
    return {"id": uuid, "root_id": uuid, "retries": 0, "delivery_info": {}, **more}


def _with_trace(app: Celery, task: Any, use: Callable[[Any], Awaitable[Any]]) -> Any:
    """What ``use(trace)`` gives, on a loop with real writers."""

    async def main() -> Any:
        writers = Writers(asyncio.get_running_loop())
        try:
            return await use(tracer.build(app.tasks[task.name], app, "here", writers))
        finally:
            await asyncio.to_thread(writers.stop)

    return asyncio.run(main())


def test_an_outcome_says_state_text_and_runtime(app: Celery) -> None:
    @app.task
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def use(trace: Any) -> tracer.Outcome:
        outcome: tracer.Outcome = await trace("tracer-one", [21], {}, _request("tracer-one"))
        return outcome

    outcome = _with_trace(app, double, use)
    assert (outcome.state, outcome.retval) == (states.SUCCESS, "42")
    assert outcome.message == (0, "42", outcome.runtime)
    assert app.AsyncResult("tracer-one").get() == 42


def test_what_had_succeeded_before_does_not_run_when_it_is_delivered_again(app: Celery) -> None:
    app.conf.update(worker_deduplicate_successful_tasks=True, task_acks_late=True)
    ran = []

    @app.task
    async def once() -> int:
        ran.append(1)
        return len(ran)

    async def use(trace: Any) -> list[tracer.Outcome]:
        again = {"delivery_info": {"redelivered": True}}
        return [
            await trace("tracer-once", [], {}, _request("tracer-once")),
            await trace("tracer-once", [], {}, _request("tracer-once", **again)),
        ]

    first, second = _with_trace(app, once, use)
    assert (first.state, second.state, ran) == (states.SUCCESS, None, [1])


def test_a_run_whose_fate_is_sealed_stores_nothing(app: Celery) -> None:
    @app.task
    async def late() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "too late"
        return "never"

    async def use(trace: Any) -> tracer.Outcome:
        run = CoroutineRun()
        task = asyncio.ensure_future(trace("tracer-late", [], {}, _request("tracer-late"), run))
        await asyncio.sleep(0.01)
        assert run.decide(REVOKED)
        assert not run.decide(FINISHED)
        run.throw(asyncio.CancelledError())
        outcome: tracer.Outcome = await task
        return outcome

    assert _with_trace(app, late, use).state is None
    assert app.AsyncResult("tracer-late").state == states.PENDING


def test_wrong_keyword_arguments_are_an_internal_error_of_that_task(app: Celery) -> None:
    told: list[Any] = []

    def heard(**given: Any) -> None:
        told.append(given["exception"])

    @app.task
    async def any_task() -> None: ...

    async def use(trace: Any) -> tracer.Outcome:
        outcome: tracer.Outcome = await trace(
            "tracer-odd", [], "no mapping", _request("tracer-odd")
        )
        return outcome

    signals.task_internal_error.connect(heard)
    with pytest.warns(RuntimeWarning, match="outside body"):
        outcome = _with_trace(app, any_task, use)
    assert outcome.state == states.FAILURE
    assert len(told) == 1


def test_two_runs_at_once_see_their_own_requests_and_leave_none_behind(app: Celery) -> None:
    @app.task(bind=True)
    async def who(self: Any) -> list[str]:
        before = self.request.id
        await asyncio.sleep(0.01)
        return [before, self.request.id, current_task.request.id]

    async def use(trace: Any) -> list[tracer.Outcome]:
        runs = [trace(uuid, [], {}, _request(uuid)) for uuid in ("tracer-a", "tracer-b")]
        return list(await asyncio.gather(*map(asyncio.ensure_future, runs)))

    _with_trace(app, who, use)
    for uuid in ("tracer-a", "tracer-b"):
        assert app.AsyncResult(uuid).get() == [uuid] * 3
    assert app.tasks[who.name].request_stack.top is None


def test_coroutine_tasks_are_told_from_plain_ones_also_under_autoretry(app: Celery) -> None:
    @app.task(autoretry_for=(ValueError,))
    async def coroutine() -> None: ...

    @app.task(autoretry_for=(ValueError,))
    def plain() -> None: ...

    assert runs_coroutines(app.tasks[coroutine.name])
    assert not runs_coroutines(app.tasks[plain.name])


def test_what_celerys_tracer_stores_on_the_loop_is_stored_by_a_writer_while_the_loop_goes_on(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, goes_on = threading.Event(), threading.Event()
    where = []
    stored = CacheBackend.set

    def slowly(self: Any, *args: Any, **options: Any) -> Any:
        where.append(threading.current_thread().name)
        storing.set()
        assert goes_on.wait(10), "the loop waits for the result to be stored"
        return stored(self, *args, **options)

    monkeypatch.setattr(CacheBackend, "set", slowly)

    async def main() -> None:
        run = CoroutineRun()
        run.writers = Writers(asyncio.get_running_loop())
        run.decide(FINISHED)
        stacks.current_run.set(run)
        loop_backend.use(app)

        async def tracer() -> None:
            app.backend.mark_as_done("stored-there", 1)

        tracing = asyncio.ensure_future(Drive(Nestable(tracer())).run())
        await asyncio.to_thread(storing.wait, 10)
        goes_on.set()
        await tracing
        await asyncio.to_thread(run.writers.stop)

    asyncio.run(main())
    assert app.AsyncResult("stored-there").get() == 1
    assert where == ["cloche-writer-0"]
