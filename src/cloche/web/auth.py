"""What every request passes before it reaches a page: who asks, from where, for whom.

Pure ASGI, so that streams pass through untouched. The attacks it answers:

- DNS rebinding: a name that is not ours in ``Host`` is refused (an IP literal cannot rebind).
- Cross-site request forgery: unsafe methods need ``Sec-Fetch-Site: same-origin`` or an
  ``Origin`` equal to ``Host``; clients that send neither (curl) are no browsers.
- Content injection: a strict Content-Security-Policy and ``nosniff`` on every answer.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloche.errors import SettingsError
from cloche.settings.model import WebSettings
from cloche.settings.quantities import is_loopback
from cloche.web.problems import problem

#: Different wrong tokens from one address within so many seconds, after which none is looked at.
MAX_GUESSES, GUESS_INTERVAL = 10, 60.0

#: Addresses remembered; the one that was quiet for longest is forgotten first.
_ADDRESSES = 10_000

_log = logging.getLogger(__name__)

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

#: Answered to anybody: probes carry neither our host name nor the token. What they then
#: tell is kept to a yes or no (see ``trusted``).
_PROBES = frozenset({"/healthz", "/readyz"})

#: Reachable without the token, or nobody could give it.
_OPEN = ("/login", "/static/")


class Guesses:
    """Per address of a client (of IPv6: its /64 network, which one guesser may own).

    The same wrong token again is no further guess: a program with an old token, or a page with an
    old cookie that asks every second, locks nobody out.
    """

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, dict[bytes, float]] = OrderedDict()

    def right(self, scope: Scope, given: str, wanted: str) -> bool:
        """Whether ``given`` is the secret; compared in constant time, and not at all where there
        were too many wrong ones. An empty one is none, right or wrong."""
        if not given or not wanted or self.too_many(scope):
            return False
        if hmac.compare_digest(given.encode(errors="replace"), wanted.encode()):
            return True
        place = _place(scope)
        wrong = self._wrong.setdefault(place, {})
        wrong[hashlib.sha256(given.encode(errors="replace")).digest()] = time.monotonic()
        self._wrong.move_to_end(place)
        while len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)
        return False

    def too_many(self, scope: Scope) -> bool:
        """Whether guessing has to wait."""
        wrong = self._wrong.get(_place(scope))
        if not wrong:
            return False
        since = time.monotonic() - GUESS_INTERVAL
        for guess in [guess for guess, at in wrong.items() if at < since]:
            del wrong[guess]
        return len(wrong) >= MAX_GUESSES


def _place(scope: Scope) -> str:
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False))


def check_exposure(settings: WebSettings, section: str) -> None:
    """Raise SettingsError for a server that anybody on the network could use."""
    if settings.token is None and not is_loopback(settings.host):
        raise SettingsError(
            f"{section}.host is {settings.host}, which others can reach, and there is no token.",
            why="Anybody on the network could use it.",
            fix=f"Set {section}.token to a long random secret, or {section}.host to 127.0.0.1.",
        )


def session(token: str, purpose: str) -> str:
    """What the login cookie holds: made from the token, never the token itself."""
    return hmac.new(token.encode(), f"cloche {purpose}".encode(), hashlib.sha256).hexdigest()


def trusted(scope: Scope) -> bool:
    """Whether the request came to a name of ours and with the token, if there is one."""
    return bool(scope.get("cloche.trusted"))


@dataclass(slots=True)
class Security:
    """The middleware. ``purpose`` names the server: cookies are shared between ports."""

    app: ASGIApp
    settings: WebSettings
    purpose: str
    cookie: str = field(init=False)
    guesses: Guesses = field(init=False, default_factory=Guesses)

    def __post_init__(self) -> None:
        self.cookie = f"cloche-{self.purpose}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in any case: an exception that nobody expected is a problem like others, with
        the same headers, and nothing of it is told."""
        answering = WithHeaders(send)
        refusal = self._refusal(scope, Headers(scope=scope))
        try:
            await (refusal or self.app)(scope, receive, answering)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if answering.begun:  # half an answer: the connection is closed, so that all see it
                raise
            failure = problem(
                500, "Something went wrong here", why="The server's log says what.", fix=""
            )
            await failure(scope, receive, answering)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """None when the request may pass."""
        path = scope["path"]
        known = allowed_host(headers.get("host", ""), self.settings.allowed_hosts)
        signed_in = self._signed_in(scope, headers)
        scope["cloche.trusted"] = known and signed_in
        scope["cloche.guesses"] = self.guesses
        if path in _PROBES:
            return None
        if not known:
            return _refused_host(headers.get("host", ""))
        if scope["method"] not in _SAFE and not same_origin(headers):
            return problem(
                403,
                "Refused: another site sent this request",
                why="Sec-Fetch-Site or Origin names another origin than this server.",
                fix="Send it from this server's own page, or from a program without Origin.",
            )
        if not signed_in and not path.startswith(_OPEN):
            if self.guesses.too_many(scope):
                return slow_down()
            return _sign_in(scope, headers)
        return None

    def _signed_in(self, scope: Scope, headers: Headers) -> bool:
        """Whether the request carries the token, or the cookie made from it. From where too many
        wrong ones came lately, none is looked at."""
        if self.settings.token is None:
            return True
        token = self.settings.token.get_secret_value()
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given, wanted = given.strip(), token
        else:
            given, wanted = _cookie(headers, self.cookie), session(token, self.purpose)
        return self.guesses.right(scope, given, wanted)


def allowed_host(host: str, further: Iterable[str]) -> bool:
    """Whether a ``Host`` header is ours: loopback names, IP literals and ``further`` names.

    ``.example.org`` among ``further`` stands for its sub-domains, ``*`` for every name.
    """
    name = _hostname(host)
    if not name:
        return False
    if name == "localhost" or name.endswith(".localhost") or _address(name):
        return True
    return any(
        entry == "*" or name == entry.lower() or (entry[:1] == "." and name.endswith(entry.lower()))
        for entry in further
    )


def same_origin(headers: Headers) -> bool:
    """Whether a request that changes something comes from our own page or from no browser."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return True
    return origin != "null" and urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _refused_host(host: str) -> Response:
    return problem(
        421,
        f"Refused: this server is not called {host[:100]!r}",
        why="A foreign name in Host is how DNS rebinding reaches servers on this machine.",
        fix="Use localhost, or add the name to allowed_hosts in the settings of this server.",
    )


def _sign_in(scope: Scope, headers: Headers) -> Response:
    if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        query = scope["query_string"].decode("latin-1")
        target = quote(scope["path"]) + (f"?{query}" if query else "")
        return RedirectResponse(f"/login?next={quote(target)}", status_code=303)
    refusal = problem(
        401,
        "A token is needed",
        why="This server has a token and the request carries none, or another.",
        fix="Send 'Authorization: Bearer <token>', or sign in at /login.",
    )
    refusal.headers["www-authenticate"] = "Bearer"
    return refusal


def slow_down() -> Response:
    refusal = problem(
        429,
        "Too many wrong tokens",
        why="So many came from this address within a minute that none is looked at now.",
        fix="Wait a minute.",
    )
    refusal.headers["retry-after"] = "60"
    return refusal


class WithHeaders:
    """Sends with our headers; ``begun`` once an answer has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)
