"""Errors as RFC 9457 problem details, with Cloche's what, why and fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloche.errors import (
    BrokerError,
    ClocheError,
    DatabaseError,
    DownloadError,
    ExtraMissingError,
    LogQueryError,
    SettingsError,
)
from cloche.plain import json_value
from cloche.web.pages import render

PROBLEM_TYPE = "application/problem+json"

#: Why, where the problem itself says no more than what its status is called.
_WHY = {
    404: "The address may be mistyped, or what was there has been removed.",
    405: "This address takes other requests than this one.",
}


class Problem(BaseModel):
    """RFC 9457 problem details: ``title`` what, ``detail`` why, ``fix`` what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    fix: str | None = None


_STATUS: tuple[tuple[type[ClocheError], int], ...] = (
    (DownloadError, 422),
    (ExtraMissingError, 422),
    (SettingsError, 422),
    (LogQueryError, 422),
    (BrokerError, 503),
    (DatabaseError, 503),
)


def problem(status: int, title: str, *, why: str = "", fix: str = "", **more: object) -> Response:
    """An ``application/problem+json`` answer; ``more`` becomes extension members."""
    body: dict[str, object] = {"type": "about:blank", "title": title, "status": status}
    body |= {"detail": why} if why else {}
    body |= {"fix": fix} if fix else {}
    return Response(
        orjson.dumps(json_value({**body, **more})),
        status_code=status,
        media_type=PROBLEM_TYPE,
        headers={"cache-control": "no-store"},
    )


def not_found(what: str) -> Response:
    """404 for a thing that is not there, or no longer."""
    return problem(404, f"There is no {what}", why="It never was, or it has been removed.")


def status_of(error: ClocheError) -> int:
    """The HTTP status that says what kind of error it is."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


async def on_error(_request: Request, error: Exception) -> Response:
    """Exception handler for ``ClocheError``."""
    assert isinstance(error, ClocheError)  # noqa: S101 (registered for this type only)
    return problem(status_of(error), error.what, why=error.why, fix=error.fix)


async def on_http_error(_request: Request, error: Exception) -> Response:
    """Exception handler for Starlette's own refusals (404, 405 …)."""
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for this type only)
    answer = problem(error.status_code, error.detail or HTTPStatus(error.status_code).phrase)
    answer.headers.update(error.headers or {})
    return answer


@dataclass(slots=True)
class ProblemPages:
    """The outermost middleware: what is refused before any page is reached is shown as well."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        template = _wanted(scope)
        await self.app(scope, receive, send if template is None else _AsPage(send, template))


def _wanted(scope: Scope) -> str | None:
    """The template for who asks; None: problem details."""
    if scope["type"] != "http" or scope["method"] == "HEAD" or scope["path"].startswith("/api/"):
        return None
    headers = Headers(scope=scope)
    if headers.get("hx-request") == "true":
        return "notice.html"
    return "problem.html" if "text/html" in headers.get("accept", "") else None


@dataclass(slots=True)
class _AsPage:
    """Sends an answer; one of problem details once it is whole, in another form."""

    send: Send
    template: str
    _held: Message | None = None
    _body: bytearray = field(default_factory=bytearray)

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("content-type") == PROBLEM_TYPE:
                self._held = message
                return
        elif self._held is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_page(self._held)
            return
        await self.send(message)

    async def _send_page(self, start: Message) -> None:
        text = render(self.template, **_told(orjson.loads(self._body))).encode()
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-type"] = "text/html; charset=utf-8"
        headers["content-length"] = str(len(text))
        await self.send({**start, "headers": headers.raw})
        await self.send({"type": "http.response.body", "body": text})


def _told(problem: Mapping[str, Any]) -> dict[str, object]:
    status = int(problem["status"])
    title, why = str(problem["title"]), str(problem.get("detail", ""))
    if status in _WHY and title == HTTPStatus(status).phrase:
        title, why = ("There is nothing here" if status == 404 else title), why or _WHY[status]
    told = ClocheError(title, why=why, fix=str(problem.get("fix", "")))
    return {"problem": told, "status": status}
