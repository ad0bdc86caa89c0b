"""A web application as servers load it: it has published before they fork.

What serves it is a worker process of gunicorn or uWSGI, whose threads publish and wait for results
at the same time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from cloche import publish_many
from tests.integration.fork.program import app, echo

LOADED_BY = os.getpid()
FIRST = [echo.delay("first"), *(echo.delay(f"first {number}") for number in range(2))]
for one in FIRST:
    one.get(timeout=20)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """One request: tasks of every way to publish; ids, and whether each result was its own."""
    word = parse_qs(environ["QUERY_STRING"])["word"][0]
    published = [echo.delay(f"{word} {number}") for number in range(5)]
    late = echo.apply_async((f"{word} late",), countdown=0.05)
    many = publish_many(app, [echo.s(f"{word} many {number}") for number in range(3)])
    found = [one.get(timeout=20) for one in (*published, late)]
    found += [app.AsyncResult(one).get(timeout=20) for one in many.ids]
    expected = [f"{word} {number}" for number in range(5)] + [f"{word} late"]
    expected += [f"{word} many {number}" for number in range(3)]
    told = {
        "pid": os.getpid(),
        "loaded": LOADED_BY,
        "ids": [*(one.id for one in (*published, late)), *many.ids],
        "own": found == expected,
        "first": [one.id for one in FIRST],
    }
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps(told).encode()]
