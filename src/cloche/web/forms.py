"""Small bounded bodies from our own pages, and signing in with the token."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cloche.settings.model import WebSettings
from cloche.web.auth import Guesses, session, slow_down
from cloche.web.pages import page

_LIMIT = 32 * 1024
_FIELDS = 50
_MONTH = 30 * 24 * 3600


async def read_body(request: Request, limit: int = _LIMIT) -> bytes | None:
    """The body, or None when it is longer than ``limit`` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of an url-encoded form that are not empty. Raises HTTPException (413, 400)."""
    body = await read_body(request)
    if body is None:
        raise HTTPException(413, f"The form is longer than {_LIMIT} bytes")
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_FIELDS)
    except ValueError:
        raise HTTPException(400, f"The form has more than {_FIELDS} fields") from None
    return {name: value.strip() for name, value in pairs if value.strip()}


def login_routes(settings: WebSettings, purpose: str) -> list[Route]:
    """``/login`` for servers with a token; nothing for those without."""
    if settings.token is None:
        return []
    token = settings.token.get_secret_value()

    async def show(request: Request) -> Response:
        target = inside(request.query_params.get("next", "/"))
        return page("login.html", section=purpose, next=target, wrong=False)

    async def check(request: Request) -> Response:
        guesses: Guesses = request.scope["cloche.guesses"]
        if guesses.too_many(request.scope):
            return slow_down()
        form = await read_form(request)
        target = inside(form.get("next", "/"))
        if not guesses.right(request.scope, form.get("token", ""), token):
            return page("login.html", status=403, section=purpose, next=target, wrong=True)
        answer = RedirectResponse(target, status_code=303)
        answer.set_cookie(
            f"cloche-{purpose}",
            session(token, purpose),
            max_age=_MONTH,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    return [Route("/login", show, methods=["GET"]), Route("/login", check, methods=["POST"])]


def inside(target: str) -> str:
    """``target`` if it is a path of this server, else the front page."""
    if target.startswith("/") and not target.startswith(("//", "/\\")):
        return target
    return "/"
