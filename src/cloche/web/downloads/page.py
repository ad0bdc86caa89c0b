"""The page on which people download: forms that work with and without scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio.to_thread import run_sync
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cloche.errors import ClocheError, DownloadRefusedError
from cloche.settings import Settings
from cloche.tasks.download import Download, Downloads
from cloche.web import live as sse
from cloche.web.downloads.live import SHOWN, DownloadStreams, answer_fragment
from cloche.web.downloads.schema import DownloadRequest
from cloche.web.forms import read_form
from cloche.web.pages import page, render
from cloche.web.problems import status_of


class DownloadsPage:
    """``/``, its live stream, and the forms on it."""

    def __init__(self, desk: Downloads, streams: DownloadStreams, settings: Settings) -> None:
        self._desk = desk
        self._streams = streams
        self._settings = settings

    def routes(self) -> list[Route]:
        """All routes of the page."""
        return [
            Route("/", self.show),
            Route("/live", self.live),
            Route("/downloads", self.create, methods=["POST"]),
            Route("/downloads/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/downloads/{id}/retry", self.retry, methods=["POST"]),
            Route("/downloads/{id}/remove", self.remove, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        return await self._page(request)

    async def live(self, _request: Request) -> Response:
        return sse.stream(self._streams.page())

    async def create(self, request: Request) -> Response:
        """Ask for the file behind the pasted address."""
        fields: dict[str, Any] = await read_form(request)
        return await self._do(request, lambda: self._desk.request(**wish_of(fields).model_dump()))

    async def cancel(self, request: Request) -> Response:
        """Cancel the download of that card."""
        return await self._do(request, lambda: self._desk.cancel(request.path_params["id"]))

    async def retry(self, request: Request) -> Response:
        """Try the download of that card again."""
        return await self._do(request, lambda: self._desk.retry(request.path_params["id"]))

    async def remove(self, request: Request) -> Response:
        """Forget the download of that card, and its file."""
        return await self._do(request, lambda: self._desk.remove(request.path_params["id"]))

    async def _do(self, request: Request, act: Callable[[], Download]) -> Response:
        """Act, then answer with the list (htmx) or send back to the page (a plain form)."""
        scripted = request.headers.get("hx-request") == "true"
        try:
            await run_sync(act)
        except ClocheError as error:
            if scripted:
                notice = render("notice.html", problem=error)
                return HTMLResponse(notice, status_of(error))
            return await self._page(request, error)
        if not scripted:
            return RedirectResponse("/", 303)
        return HTMLResponse(answer_fragment(await run_sync(self._newest)))

    async def _page(self, request: Request, error: ClocheError | None = None) -> Response:
        shown = self._settings.dashboard
        host = request.url.hostname or "localhost"
        return page(
            "service/page.html",
            status=200 if error is None else status_of(error),
            downloads=await run_sync(self._newest),
            max_size=self._settings.download.max_size,
            base=f"{request.url.scheme}://{request.url.netloc}",
            dashboard_port=shown.port if shown.enabled else None,
            dashboard_url=f"{request.url.scheme}://{_bracketed(host)}:{shown.port}/",
            problem=error,
        )

    def _newest(self) -> tuple[Download, ...]:
        return tuple(self._desk.list(limit=SHOWN))


def wish_of(fields: dict[str, Any]) -> DownloadRequest:
    """The form as a wish. Raises DownloadRefusedError that says which field is wrong."""
    try:
        return DownloadRequest(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        what = "Paste the address of a file." if first["type"] == "missing" else f"{field} is wrong"
        why = str(first["msg"]).removeprefix("Value error, ")
        raise DownloadRefusedError(what, why=why) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
