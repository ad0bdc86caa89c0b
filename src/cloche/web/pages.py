"""The templates, and the filters that turn figures into words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlencode, urlsplit

import orjson
from celery import states
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloche.plain import utf8


class _Transfer(Protocol):
    """What the filters need of a download. The type itself would pull the whole family
    into the dashboard's process, which has no use for it."""

    @property
    def url(self) -> str: ...
    @property
    def filename(self) -> str | None: ...
    @property
    def received(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    @property
    def rate(self) -> float: ...


_HERE = Path(__file__).parent
_STATIC = _HERE / "static"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "as_is": as_is,
        "brief": brief,
        "bytes": size,
        "clock": clock,
        "cut": cut,
        "duration": duration,
        "iso": iso,
        "json": indented,
        "left": left,
        "level_tone": level_tone,
        "percent": percent,
        "run_tone": run_tone,
        "sentences": sentences,
        "stamp": stamp,
        "thousands": thousands,
        "title": title,
        "tone": tone,
        "words": words,
    }
    made.globals["version"] = _version()
    made.globals["bell"] = Markup(made.get_template("macros.html").module.bell())  # type: ignore[attr-defined] # noqa: S704
    return made


def render(template: str, **values: object) -> Markup:
    """The filled template, safe to put into another one."""
    return Markup(utf8(_environment().get_template(template).render(values)))  # noqa: S704


def page(template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    """The filled template as an answer nobody keeps."""
    return HTMLResponse(render(template, **values), status, {"cache-control": "no-store"})


def _version() -> str:
    """Changes with the static files, so that they may be cached for ever."""
    digest = hashlib.sha256()
    for path in sorted(_STATIC.rglob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def static_files() -> ASGIApp:
    """The vendored and own static files, compressed, cached as long as the browser likes."""
    files = GZipMiddleware(StaticFiles(directory=_STATIC), minimum_size=1024)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_cached(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                lasting = (b"cache-control", b"public, max-age=31536000, immutable")
                message["headers"] = [*message["headers"], lasting]
            await send(message)

        await files(scope, receive, send_cached)

    return app


#: Control characters but the ends of lines and tabs, and what turns the direction of a line.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def visible(value: object) -> object:
    """Text of data as it is shown: what a page would hide is written out, as on a terminal."""
    if type(value) is not str or value.isprintable():
        return value
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), value)


def as_is(text: str) -> Markup:
    """For what comes back from a form: every character as it is."""
    return escape(text)


#: Characters of one argument, result or traceback that a page shows.
SHOWN = 20_000


def cut(text: str) -> str:
    """A text that may be megabytes, as far as a page shows it."""
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]} … [the first {SHOWN:,} of {len(text):,} characters; JSON has them all]"


def size(count: float | None) -> str:
    """``1536`` -> ``1.5 KB``; units of 1024, as settings and file managers count."""
    if count is None:
        return "size unknown"
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """``0.0123`` -> ``12 ms``, ``75`` -> ``1 min 15 s``, ``7260`` -> ``2 h 1 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(at: float) -> str:
    """Time of day in UTC: what stands there until a script makes it relative."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def stamp(at: datetime) -> str:
    """When a record was made, in UTC: the time of today, and the day of other days."""
    time = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"
    today = datetime.now(UTC).date()
    if at.date() == today:
        return time
    return f"{at:%b %d} {time}" if at.year == today.year else f"{at:%Y-%m-%d} {time}"


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def percent(download: _Transfer) -> str:
    """How much has arrived; never 100 % before the end."""
    if not download.total:
        return ""
    return f"{min(99, 100 * download.received // download.total)} %"


def left(download: _Transfer) -> float | None:
    """Seconds to go at the present rate."""
    if not download.total or not download.rate:
        return None
    return max(0.0, (download.total - download.received) / download.rate)


def sentences(error: str) -> list[str]:
    """The lines of an error's text, without the ``why:`` and ``fix:`` that terminals get."""
    lines = (line.strip() for line in error.splitlines())
    return [line.removeprefix("why: ").removeprefix("fix: ") for line in lines if line]


def title(download: _Transfer) -> str:
    """What to call a download: its file name, else the end of its address."""
    if download.filename:
        return download.filename
    parts = urlsplit(download.url)
    return unquote(parts.path.rstrip("/").rpartition("/")[2]) or parts.netloc or download.url


_TONES = {
    states.SUCCESS: "good",
    states.FAILURE: "bad",
    states.STARTED: "busy",
    "PROGRESS": "busy",
    states.RETRY: "warn",
    states.REJECTED: "warn",
    states.REVOKED: "warn",
}
_WORDS = {
    states.PENDING: "Sent",
    states.RECEIVED: "Received",
    states.STARTED: "Running",
    states.SUCCESS: "Succeeded",
    states.FAILURE: "Failed",
    states.RETRY: "Retrying",
    states.REVOKED: "Revoked",
    states.REJECTED: "Rejected",
}


def tone(state: str) -> str:
    """The colour of a task state."""
    return _TONES.get(state, "")


def words(state: str) -> str:
    """A task state as people say it."""
    return _WORDS.get(state, state.capitalize())


_LEVEL_TONES = {"info": "busy", "warning": "warn", "error": "bad", "critical": "bad"}
_RUN_TONES = {
    "running": "busy",
    "succeeded": "good",
    "failed": "bad",
    "cancelled": "warn",
    "left": "warn",
}


def level_tone(level: str) -> str:
    """The colour of a log level."""
    return _LEVEL_TONES.get(level, "")


def run_tone(status: str) -> str:
    """The colour of a workflow run's status."""
    return _RUN_TONES.get(status, "")


def thousands(count: float) -> str:
    """``1234567`` -> ``1,234,567``."""
    return f"{count:,}"


def brief(details: Mapping[str, object]) -> str:
    """The first details of a log record on a line, tracebacks left out."""
    parts = (f"{key}={value}" for key, value in details.items() if key != "traceback")
    line = " ".join(" ".join(parts).split())
    return line if len(line) <= 120 else f"{line[:119]}…"


def indented(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def link(path: str, params: Mapping[str, str], **more: object) -> str:
    """``path`` with those parameters, and those of ``more`` that are not None."""
    given = {**params, **{name: str(value) for name, value in more.items() if value is not None}}
    return f"{path}?{urlencode(given)}" if given else path


def adding(path: str, params: Mapping[str, str]) -> Callable[..., str]:
    """A function that gives ``path`` with ``params`` and what it is called with."""
    return lambda **more: link(path, params, **more)
