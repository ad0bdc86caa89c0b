"""Tasks that store results in every way there is, for a stock worker and for ours."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery import Celery, states
from celery.exceptions import Ignore, Retry

import cloche

url = os.environ["CLOCHE_BROKER__URL"]
app = Celery("results", broker=url, backend=url)
app.conf.update(
    accept_content=["json", "pickle"],
    result_extended=True,
    task_track_started=True,
    task_store_errors_even_if_ignored=True,
    timezone="Europe/Berlin",
)
if "RESULTS_STOCK" not in os.environ:
    cloche.harden(app)


class Odd(Exception):
    """Cannot be made from its arguments, nor be pickled."""

    def __init__(self, *, code: int) -> None:
        super().__init__(code, object)
        self.code = code


@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="mapping")
def mapping() -> dict[str, Any]:
    return {"é": [1, 2.5, None, True], "n": {"a": "\ud800"}}


@app.task(name="parent")
def parent() -> str:
    add.delay(1, 2)
    return "parent"


@app.task(name="fail")
def fail() -> None:
    raise ValueError("no", 1)


@app.task(name="odd")
def odd() -> None:
    raise Odd(code=3)


@app.task(name="unencodable")
def unencodable(kind: str) -> Any:
    return {"object": object(), "huge": 10**5000, "error": ValueError("a value")}[kind]


@app.task(name="progress", bind=True)
def progress(self: Any) -> str:
    self.update_state(state="PROGRESS", meta={"done": 1})
    self.update_state(state="PROGRESS", meta={"done": 2})
    return "whole"


@app.task(name="fan", bind=True)
def fan(self: Any, ids: list[str]) -> list[str]:
    """Stores results of others in each way; what a reader sees of them before it returns."""
    one, two, three, four, five = ids
    self.update_state(task_id=one, state=states.SUCCESS, meta="updated")
    self.backend.mark_as_done(two, "done")
    self.backend.mark_as_failure(three, ValueError("failed"))
    self.backend.store_result(four, {"stored": 1}, states.SUCCESS, request=self.request)
    user = threading.Thread(target=app.backend.mark_as_done, args=(five, "thread", self.request))
    user.start()
    user.join()
    return [app.backend._get_task_meta_for(one_id)["status"] for one_id in ids]


@app.task(name="early", bind=True)
def early(self: Any, how: str) -> None:
    """Its result is there before its body ends, which lasts until it was seen."""
    if how == "update_state":
        self.update_state(state=states.SUCCESS, meta="here")
    else:
        self.backend.mark_as_done(self.request.id, "here", self.request)
    deadline = time.monotonic() + 20
    key = f"seen-{self.request.id}"
    while not app.backend.client.get(key):
        if time.monotonic() > deadline:
            raise RuntimeError("nobody saw the result while the body ran")
        time.sleep(0.01)
    raise Ignore


@app.task(name="after_success", bind=True)
def after_success(self: Any) -> str:
    """A success that the body stored is not overwritten by what comes later."""
    self.update_state(state=states.SUCCESS, meta="first")
    self.update_state(state="PROGRESS", meta="late")
    return "second"


@app.task(name="retried", bind=True)
def retried(self: Any) -> int:
    if self.request.retries < 1:
        raise self.retry(countdown=0.2, exc=KeyError("again"))
    return int(self.request.retries)


@app.task(name="back_at_once", bind=True, max_retries=1)
def back_at_once(self: Any, **options: Any) -> None:
    """Is back before it has said that it is tried again."""
    if self.request.retries:
        raise ValueError("the last word")
    try:
        self.retry(countdown=0, **options)
    except Retry:
        time.sleep(0.3)
        raise


@app.task(name="ignored", ignore_result=True)
def ignored(fails: bool) -> str:
    if fails:
        raise ValueError("ignored")
    return "ignored"
