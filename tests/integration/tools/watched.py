"""An application as projects have it, with the tools they put around Celery.

A worker on any pool runs it; ``python -m tests.integration.tools.watched`` is its producer. What
happens is told in a ledger, and to the address that ``WATCHED_DSN`` says is Sentry.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sentry_sdk
from celery import Celery, Task, signals
from celery.worker.request import Request
from celery_batches import Batches, SimpleRequest
from opentelemetry import trace as telemetry
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.integrations.celery import CeleryIntegration

import cloche
from cloche import AsyncTask, async_task

app = Celery("watched", broker=os.environ["WATCHED_URL"], backend=os.environ["WATCHED_URL"])
cloche.harden(app)  # before any tool has a look at Celery
ledger = os.open(os.environ["WATCHED_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
tool = os.environ["WATCHED_TOOL"]


def note(word: str, *values: Any) -> None:
    """One line in the ledger."""
    os.write(ledger, (json.dumps([word, *values]) + "\n").encode())


def watch(**_: Any) -> None:
    """Sentry, as its documentation has it."""
    sentry_sdk.init(
        os.environ["WATCHED_DSN"],
        traces_sample_rate=1.0,
        integrations=[CeleryIntegration(monitor_beat_tasks=True)],
        auto_enabling_integrations=False,
    )


class Ledger(SpanExporter):
    """Where OpenTelemetry's spans go."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            status = span.status.status_code.name
            context = span.get_span_context()
            assert context is not None
            note("span", span.name, f"{context.trace_id:x}", status)
        return SpanExportResult.SUCCESS


if tool == "telemetry":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Ledger()))
    telemetry.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]
elif tool == "sentry" or __name__ == "__main__":
    watch()
else:
    getattr(signals, tool).connect(watch, weak=False)


@app.task(name="watched.plain")
def plain(number: int) -> int:
    with sentry_sdk.start_span(op="body", name=f"body {number}"):
        note("trace", f"{telemetry.get_current_span().get_span_context().trace_id:x}")
        if number < 0:
            raise ValueError(number)
    return number


@async_task(app=app, name="watched.coroutine")
async def coroutine(number: int) -> int:
    await asyncio.sleep(0.01)
    with sentry_sdk.start_span(op="body", name=f"body {number}"):
        note("trace", f"{telemetry.get_current_span().get_span_context().trace_id:x}")
        await asyncio.sleep(0.01)
        if number < 0:
            raise ValueError(number)
    return number


@app.task(name="watched.retried", bind=True, max_retries=1)
def retried(self: Task) -> int:
    if not self.request.retries:
        raise self.retry(countdown=0)
    return 1


class Around(AsyncTask):
    """A ``__call__`` of one's own, as Flask's documentation has it."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note("around", self.name, self.request.id is not None)
        value = super().__call__(*args, **kwargs)
        note("value", self.name, value)
        return value


class AsyncAround(AsyncTask):
    """One that is a coroutine itself."""

    abstract = True

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note("around", self.name, self.request.id is not None)
        value = await super().__call__(*args, **kwargs)
        note("value", self.name, value)
        return value


class OwnRequest(Request):
    """A request class of one's own."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        note("request", self.name, "accepted")
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        note("request", self.name, "failure")
        return super().on_failure(exc_info, *args, **kwargs)


@app.task(name="watched.called", base=Around)
async def called() -> int:
    await asyncio.sleep(0)
    return 1


@app.task(name="watched.awaited", base=AsyncAround)
async def awaited() -> int:
    await asyncio.sleep(0)
    return 1


@async_task(app=app, name="watched.requested", Request=f"{OwnRequest.__module__}:OwnRequest")
async def requested() -> None:
    raise KeyError("x")


@app.task(name="watched.batch", base=Batches, flush_every=3, flush_interval=5)
def batch(requests: Sequence[SimpleRequest]) -> None:
    note("batch", sorted(request.args[0] for request in requests))
    for request in requests:
        app.backend.mark_as_done(request.id, request.args[0], request=request)


@app.task(name="cron.works")
def works() -> None:
    """Nothing goes wrong."""


@async_task(app=app, name="cron.fails")
async def fails() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("as it should")


#: Each is due as soon as the scheduler begins, and then after the tests.
app.conf.beat_schedule = {
    name: {
        "task": f"cron.{name}",
        "schedule": timedelta(hours=1),
        "last_run_at": datetime.now(UTC) - timedelta(hours=2),
    }
    for name in ("works", "fails")
}


def produce() -> None:
    """Publish all of it within one trace, wait for the results, print what came of it."""
    with sentry_sdk.start_transaction(name="producer", op="test") as transaction:
        results = [task.delay(number) for task in (plain, coroutine) for number in (1, 2, -1)]
        results += [task.delay() for task in (retried, called, awaited, requested)]
        results += [batch.delay(number) for number in range(3)]
        outcomes = [repr(result.get(timeout=30, propagate=False)) for result in results]
    sentry_sdk.flush(10)
    print(json.dumps([transaction.trace_id, outcomes]), flush=True)


if __name__ == "__main__":
    sys.modules["tests.integration.tools.watched"] = sys.modules["__main__"]
    produce()
