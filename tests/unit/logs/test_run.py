"""Runs and steps: what is logged, when, and who is told."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Retry

from cloche.errors import WorkflowError
from cloche.logs.context import scope, surroundings
from cloche.logs.record import Level
from cloche.logs.run import RunStatus, WorkflowRun
from cloche.logs.step import Step


@dataclass
class Book:
    """A logger that keeps what it is told, with the surroundings it was told in."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def log(
        self,
        level: Level,
        category: str,
        step: str | None,
        message: str,
        *,
        task_id: str | None = None,
        run_id: str | None = None,
        concept_id: str | None = None,
        agent: str | None = None,
        details: Mapping[str, Any] | None = None,
        duration_ms: float | None = None,
    ) -> None:
        here = surroundings()
        line = {"level": level, "category": category, "step": step, "message": message}
        line |= {"run": run_id or here.run_id, "task": task_id or here.task_id}
        line |= {"agent": agent or here.agent, "concept": concept_id or here.concept_id}
        self.lines.append({**line, "details": dict(details or {}), "took": duration_ms})

    def said(self) -> list[tuple[str, str]]:
        return [(line["level"], line["message"]) for line in self.lines]


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_run_sets_its_status_logs_and_tells_in_this_order(book: Book) -> None:
    told: list[tuple[str, str, int]] = []

    def tell(run: WorkflowRun) -> None:
        told.append((run.run_id, str(run.status), len(book.lines)))

    with WorkflowRun(book, "r1", name="roadmap", before=tell, after=[tell, tell]) as run:
        assert surroundings().run_id == "r1"
        run.log("info", "inside")
    assert book.said() == [
        ("info", "roadmap started"),
        ("info", "inside"),
        ("info", "roadmap succeeded"),
    ]
    assert told == [("r1", "running", 1), ("r1", "succeeded", 3), ("r1", "succeeded", 3)]
    assert {line["run"] for line in book.lines} == {"r1"}
    assert book.lines[-1]["took"] == run.duration_ms
    assert surroundings().run_id is None


def test_a_run_that_fails_says_so_and_the_error_goes_on(book: Book) -> None:
    told: list[BaseException | None] = []
    with (
        pytest.raises(ValueError, match="no ink"),
        WorkflowRun(book, on_error=lambda run: told.append(run.error), after=[]) as run,
    ):
        raise ValueError("no ink")
    assert run.status is RunStatus.FAILED
    assert [str(error) for error in told] == ["no ink"]
    last = book.lines[-1]
    assert (last["level"], last["message"]) == ("error", "run failed: ValueError: no ink")
    assert last["details"]["exception"] == "ValueError"
    assert "test_run.py" in last["details"]["traceback"]


def test_a_callback_that_fails_is_logged_and_changes_nothing(book: Book) -> None:
    def broken(run: WorkflowRun) -> None:
        raise OSError("no network")

    with WorkflowRun(book, before=broken, after=broken) as run:
        pass
    assert run.status is RunStatus.SUCCEEDED
    warnings = [line["message"] for line in book.lines if line["level"] == "warning"]
    assert len(warnings) == 2
    assert "broken failed: OSError: no network" in warnings[0]


def test_coroutines_are_told_in_an_async_block_and_refused_in_another(book: Book) -> None:
    told: list[str] = []

    async def tell(run: WorkflowRun) -> None:
        await asyncio.sleep(0)
        told.append(str(run.status))

    async def scene() -> None:
        async with WorkflowRun(book, before=tell, after=tell):
            pass

    asyncio.run(scene())
    assert told == ["running", "succeeded"]
    with WorkflowRun(book, before=tell):
        pass
    assert told == ["running", "succeeded"]
    assert "Use async with" in book.lines[-2]["details"]["error"]


def test_a_cancelled_run_is_neither_failed_nor_forgotten(book: Book) -> None:
    told: list[str] = []

    async def scene() -> None:
        async def run() -> None:
            async with WorkflowRun(book, on_error=lambda run: told.append(str(run.status))):
                await asyncio.sleep(60)

        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    assert told == ["cancelled"]
    assert book.said()[-1] == ("warning", "run cancelled: CancelledError")


def test_a_retry_of_celery_is_no_failure(book: Book) -> None:
    with pytest.raises(Retry), WorkflowRun(book) as run, run.step("fetch"):
        raise Retry("in a minute")
    assert run.status is RunStatus.LEFT
    assert not [line for line in book.lines if line["level"] == "error"]


def test_steps_nest_and_say_how_long_they_took(book: Book) -> None:
    with WorkflowRun(book, "r") as run, run.step("write", agent="writer") as write:
        assert write.name == "write"
        with run.step("draft", concept_id="c1"):
            run.log("info", "half done")
    done = {line["step"]: line for line in book.lines if line["details"].get("status") == "done"}
    assert set(done) == {"write", "write/draft"}
    assert done["write"]["took"] >= done["write/draft"]["took"] > 0
    assert done["write/draft"]["agent"] == "writer"
    assert done["write/draft"]["concept"] == "c1"
    (half,) = [line for line in book.lines if line["message"] == "half done"]
    assert half["step"] == "write/draft"


def test_a_step_is_tried_again_and_says_each_time(book: Book) -> None:
    calls = 0

    async def flaky(what: str) -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionError(f"lost {calls}")
        return what

    async def scene() -> str:
        async with WorkflowRun(book, "r") as run:
            return await run.step("fetch", retries=3, delay=0.001).execute(flaky, "page")

    assert asyncio.run(scene()) == "page"
    told = [(line["level"], line["message"]) for line in book.lines if line["step"]]
    assert told == [
        ("debug", "fetch started"),
        ("warning", "fetch failed, attempt 1 of 4: ConnectionError: lost 1"),
        ("debug", "fetch started"),
        ("warning", "fetch failed, attempt 2 of 4: ConnectionError: lost 2"),
        ("debug", "fetch started"),
        ("info", "fetch done at attempt 3"),
    ]


def test_a_step_that_never_works_raises_its_last_error_and_logs_it_once(book: Book) -> None:
    def broken() -> None:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"), WorkflowRun(book) as run, run.step("outer"):
        run.step("store", retries=1, delay=0.0)(broken)()
    errors = [line["message"] for line in book.lines if line["level"] == "error"]
    assert errors == ["store failed: OSError: disk gone", "run failed: OSError: disk gone"]
    with_trace = [line["step"] for line in book.lines if "traceback" in line["details"]]
    assert with_trace == ["outer/store", "outer/store"]


def test_only_what_may_help_is_tried_again(book: Book) -> None:
    calls: list[int] = []

    @Step(book, "parse", retries=5, delay=0.0, retry_on=ConnectionError)
    def parse() -> None:
        calls.append(1)
        raise ValueError("nonsense")

    with pytest.raises(ValueError, match="nonsense"):
        parse()
    assert len(calls) == 1


def test_a_decorated_function_stays_what_it_was(book: Book) -> None:
    run = WorkflowRun(book)

    @run.step("add")
    async def add(x: int, y: int) -> int:
        """Adds."""
        return x + y

    assert asyncio.iscoroutinefunction(add)
    assert add.__doc__ == "Adds."
    assert asyncio.run(add(2, y=3)) == 5


def test_what_cannot_work_is_refused(book: Book) -> None:
    with pytest.raises(WorkflowError, match="tried again"), Step(book, "x", retries=1):
        pass
    with pytest.raises(WorkflowError, match="retries"):
        Step(book, "x", retries=-1)
    with (
        WorkflowRun(book, "r") as run,
        pytest.raises(WorkflowError, match="entered already"),
        run,
    ):
        pass


def test_parallel_steps_keep_apart(book: Book) -> None:
    async def scene() -> None:
        async with WorkflowRun(book, "r") as run:

            async def one(concept: str) -> None:
                async with run.step("draft", concept_id=concept):
                    await asyncio.sleep(0.01)
                    run.log("info", f"written {concept}")

            await asyncio.gather(*(one(f"c{n}") for n in range(5)))

    asyncio.run(scene())
    for line in book.lines:
        if line["message"].startswith("written"):
            assert line["concept"] == line["message"].split()[1]
            assert line["step"] == "draft"


def test_the_celery_task_around_is_picked_up(book: Book) -> None:
    app = Celery("t", broker="memory://", set_as_current=False)

    @app.task
    def work() -> None:
        with WorkflowRun(book, "r"):
            pass
        book.log("info", "c", None, "by hand", task_id="another")

    sent = work.apply(task_id="task-1")
    assert sent.successful()
    assert [line["task"] for line in book.lines] == ["task-1", "task-1", "another"]


def test_a_scope_gives_what_nobody_said(book: Book) -> None:
    with scope(run_id="r", agent="reviewer"), scope(step="a"), scope(step="b"):
        here = surroundings()
    assert (here.run_id, here.agent, here.step) == ("r", "reviewer", "a/b")
    assert contextvars.copy_context().run(surroundings).run_id is None
