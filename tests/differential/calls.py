"""Calls and canvases as programs write them, made into Celery's."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import redis
from celery import Celery, chain, chord, group
from kombu import Producer

from tests.differential import ledger
from tests.differential.values import build

Spec = Mapping[str, Any]
PREFIX = "d."


def arguments(program: str, spec: Spec) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call."""
    named = {"p": program, "n": spec["n"], **build(spec.get("kw", {}))}
    if spec.get("s"):
        named["s"] = spec["s"]
    return tuple(build(value) for value in spec.get("v", ())), named


def options(app: Celery, program: str, spec: Spec) -> dict[str, Any]:
    """The options of a call, with times made from now and ids made the program's own."""
    found = build(spec.get("o", {}))
    if zone := found.pop("eta_zone", None):
        offset = dt.timezone(dt.timedelta(hours=zone["hours"]))
        moment = dt.datetime.now(offset) + dt.timedelta(seconds=zone["seconds"])
        found["eta"] = moment.replace(tzinfo=None) if zone.get("naive") else moment
    if "expires_at" in found:
        seconds = found.pop("expires_at")
        found["expires"] = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    if found.pop("own_id", None):
        found["task_id"] = f"{program}.{spec['n']}"
    for key in ("link", "link_error"):
        if key in found:
            found[key] = [canvas(app, program, one) for one in found[key]]
            if found.get("link_alone"):
                found[key] = found[key][0]
    found.pop("link_alone", None)
    return dict(found)


def canvas(app: Celery, program: str, spec: Spec) -> Any:
    """A signature of whatever shape."""
    kind = spec.get("c", "sig")
    parts = [canvas(app, program, part) for part in spec.get("t", ())]
    if kind == "sig":
        positional, named = arguments(program, spec)
        made: Any = app.signature(
            PREFIX + spec["task"],
            args=positional,
            kwargs=named,
            options=options(app, program, spec),
            immutable=spec.get("immutable", False),
        )
    elif kind == "chain":
        made = chain(*parts, app=app)
    elif kind == "group":
        made = group(*parts, app=app)
    elif kind == "chord":
        made = chord(parts, canvas(app, program, spec["body"]), app=app)
    elif kind == "pipe":
        made = parts[0]
        for part in parts[1:]:
            made = made | part
    else:
        items = [{"p": program, "n": spec["n"], "v": value} for value in spec["items"]]
        task = app.tasks[PREFIX + "item"]
        if kind == "map":
            made = task.map(items)
        elif kind == "starmap":
            made = task.starmap([(item,) for item in items])
        else:
            made = task.chunks([(item,) for item in items], spec.get("size", 2)).group()
    if spec.get("on_error"):
        made.on_error(canvas(app, program, spec["on_error"]))
    if spec.get("stamp"):
        made.stamp(**{key: f"{program} {value}" for key, value in spec["stamp"].items()})
    return made


def call(app: Celery, program: str, spec: Spec) -> Any:
    """Publish what ``spec`` says, as it says: a result handle."""
    how = spec.get("how", "apply_async")
    if "c" in spec and spec["c"] != "sig":
        return canvas(app, program, spec).apply_async(**options(app, program, spec))
    positional, named = arguments(program, spec)
    task = app.tasks.get(PREFIX + spec["task"])
    if how == "delay":
        return task.delay(*positional, **named)
    if how == "send_task":
        chosen = options(app, program, spec)
        return app.send_task(PREFIX + spec["task"], positional, named, **chosen)
    if how == "signature":
        return canvas(app, program, spec).apply_async()
    if how == "signature_call":
        return canvas(app, program, spec).delay()
    if how == "producer":
        with app.producer_pool.acquire(block=True) as producer:
            return task.apply_async(
                positional, named, producer=producer, **options(app, program, spec)
            )
    if how == "connection":
        with app.connection_for_write() as connection:
            return task.apply_async(
                positional, named, connection=connection, **options(app, program, spec)
            )
    if how.startswith("raw"):
        return _raw(app, program, spec, positional, named)
    if how == "apply":
        return task.apply(positional, named, **options(app, program, spec))
    if how == "call":
        return task(*positional, **named)
    return task.apply_async(positional, named, **options(app, program, spec))


def _raw(
    app: Celery, program: str, spec: Spec, positional: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """What other languages and old workers publish."""
    task_id = f"{program}.{spec['n']}"
    one = {
        "task": PREFIX + spec["task"],
        "id": task_id,
        "args": list(positional),
        "kwargs": named,
        "retries": 0,
        "eta": None,
        "expires": None,
        "utc": True,
        **build(spec.get("o", {})),
    }
    headers = {"lang": "other", "task": one["task"], "id": task_id, **build(spec.get("h", {}))}
    two = [list(positional), named, {"callbacks": None, "errbacks": None, "chain": None}]
    how = spec["how"]
    ledger.note(program, "sent", n=spec["n"], id=task_id)
    if how in ("raw1", "raw2"):
        body: Any = one if how == "raw1" else two
        sent: Any = {} if how == "raw1" else headers
        with app.connection_for_write() as connection, connection.channel() as channel:
            Producer(channel).publish(
                body, exchange="", routing_key="celery", headers=sent, serializer="json",
                correlation_id=task_id,
            )  # fmt: skip
    else:
        body, sent = {
            "raw_null": (one, None),
            "raw_bare": (two, headers),
            "raw_odd": (two, {**headers, **spec.get("odd", {})}),
        }[how]
        _push(body, sent, task_id, spec)
    return app.AsyncResult(task_id)


def _push(body: Any, headers: Any, task_id: str, spec: Spec) -> None:
    """A message put into kombu's list by hand."""
    text = json.dumps(body).encode()
    envelope = {
        "body": base64.b64encode(text).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
            **spec.get("props", {}),
        },
    }
    with redis.Redis.from_url(os.environ["DIFFERENTIAL_URL"]) as server:
        server.lpush("celery", json.dumps(envelope))
