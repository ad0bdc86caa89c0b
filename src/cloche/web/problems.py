"""Errors as RFC 9457 problem details, with Cloche's what, why and fix."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cloche.errors import (
    BrokerError,
    ClocheError,
    DatabaseError,
    DownloadError,
    ExtraMissingError,
    LogQueryError,
    SettingsError,
)

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
        orjson.dumps({**body, **more}),
        status_code=status,
        media_type="application/problem+json",
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
