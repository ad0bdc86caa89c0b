"""Overrides handed to a child process through its environment arrive unchanged."""

from __future__ import annotations

import json
import string
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloche.errors import SettingsError
from cloche.settings import load, to_environ

EMPTY = Path(tempfile.gettempdir()) / "no-such-directory-for-cloche"

_names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8).filter(
    lambda name: name[0] not in "_-"
)
_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
).filter(lambda text: text.strip() and text != "null")
_seconds = st.floats(0, 1e6, allow_nan=False)


@st.composite
def _overrides(draw: st.DrawFn) -> dict[str, object]:
    worker = draw(_names)
    family = draw(_names.filter(lambda name: name != "download"))
    values: dict[str, st.SearchStrategy[Any]] = {
        "app": _text,
        "run_dir": st.just(Path("a b/c")),
        "broker.url": st.sampled_from(["redis://u:p,w x@h/0", "amqp://h//", None]),
        "broker.port": st.none() | st.integers(1, 65535),
        "broker.socket_keepalive": st.booleans(),
        "broker.connect_timeout": _seconds,
        "results.expires": st.timedeltas(timedelta(0), timedelta(days=1000)),
        "download.max_size": st.integers(1, 2**60),
        "download.allow_networks": st.lists(st.sampled_from(["10.0.0.0/8", "::1/128"])),
        "service.allowed_hosts": st.lists(st.text(string.printable, max_size=5)).map(tuple),
        "routes": st.lists(st.fixed_dictionaries({"pattern": _text, "queue": _text})),
        f"workers.{worker}.queues": st.lists(_text).map(tuple),
        f"workers.{worker}.max_memory_per_child": st.none() | st.integers(1, 2**40),
        f"workers.{worker}.pool": st.sampled_from(["prefork", "threads", "solo"]),
        f"families.{family}.queue": st.none() | _text,
        f"families.{family}.retry_delay": st.none() | _seconds,
    }
    chosen = draw(st.sets(st.sampled_from(sorted(values))))
    return {key: draw(values[key]) for key in sorted(chosen)}


@example({"download.max_size": 2**53 + 1})
@example({"results.expires": timedelta(microseconds=1), "broker.connect_timeout": 5e-324})
@given(_overrides())
def test_a_child_reads_what_its_parent_was_given(overrides: dict[str, object]) -> None:
    parent = load(overrides, environ={}, directory=EMPTY)
    child = load(environ=to_environ(overrides), directory=EMPTY)
    assert child.settings == parent.settings
    assert child.changed() == parent.changed()


def test_overrides_of_the_command_line_can_be_handed_on() -> None:
    parent = load(
        {"service.token": "s3cret-token", "stop.grace": "1h"}, environ={}, directory=EMPTY
    )
    environ = to_environ(parent.overrides())
    origins = {
        "CLOCHE_SERVICE__TOKEN": "--set service.token",
        "CLOCHE_STOP__GRACE": "--set stop.grace",
    }
    assert json.loads(environ.pop("CLOCHE_ORIGINS")) == origins
    assert environ == {"CLOCHE_SERVICE__TOKEN": "s3cret-token", "CLOCHE_STOP__GRACE": "1h"}
    assert load(environ=environ, directory=EMPTY).settings == parent.settings


def test_names_that_capitals_tell_apart_keep_them() -> None:
    overrides = {"workers.Main.prefetch": 2, "workers.main.prefetch": 3}
    workers = load(environ=to_environ(overrides), directory=EMPTY).settings.workers
    assert {name: worker.prefetch for name, worker in workers.items()} == {"Main": 2, "main": 3}


@pytest.mark.parametrize(("key", "value"), [("app", " "), ("families.x.queue", "null"), ("x", 1)])
def test_what_no_variable_can_carry_is_refused(key: str, value: object) -> None:
    with pytest.raises(SettingsError):
        to_environ({key: value})
