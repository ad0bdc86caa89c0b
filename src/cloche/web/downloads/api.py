"""The JSON API of downloads, and their files."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import JSONResponse

from cloche.errors import DownloadError
from cloche.tasks.download import Download, Downloads, DownloadState
from cloche.web import live as sse
from cloche.web.downloads.files import file_response
from cloche.web.downloads.live import DownloadStreams
from cloche.web.downloads.schema import DownloadPage, DownloadRequest, DownloadView, view
from cloche.web.openapi import content
from cloche.web.pages import title
from cloche.web.problems import Problem, not_found, problem

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such download"},
    422: {"model": Problem, "description": "It cannot be done as asked"},
    503: {"model": Problem, "description": "Broker or database do not answer"},
}


_FILE: dict[int | str, dict[str, Any]] = {
    200: content("*/*", description="The whole file"),
    206: content("*/*", description="The part that Range asks for"),
    304: {"description": "The copy in If-None-Match is the same"},
    **{
        status: {"model": Problem, "description": what}
        for status, what in (
            (409, "There is no file yet"),
            (410, "The file is gone"),
            (416, "The file is shorter"),
        )
    },
}


def downloads_router(desk: Downloads, streams: DownloadStreams) -> APIRouter:
    """Routes of ``/api/downloads`` and ``/files``."""
    router = APIRouter(tags=["downloads"], responses=_PROBLEMS)
    _add_collection(router, desk)
    _add_item(router, desk, streams)
    _add_files(router, desk)
    return router


def _add_collection(router: APIRouter, desk: Downloads) -> None:
    @router.post(
        "/api/downloads",
        response_model=DownloadView,
        status_code=202,
        summary="Ask for a file",
        responses={200: {"model": DownloadView, "description": "It is here already"}},
    )
    def create(wish: DownloadRequest) -> Response:
        """Returns at once: 202 while it is under way (also when joined), 200 when it is here."""
        download = desk.request(**wish.model_dump())
        status = 200 if download.state is DownloadState.DONE else 202
        return _answer(download, status)

    @router.get("/api/downloads", response_model=DownloadPage, summary="List downloads")
    def index(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[
            float | None,
            Query(ge=0, allow_inf_nan=False, description="``created`` of the last one"),
        ] = None,
        state: DownloadState | None = None,
    ) -> DownloadPage:
        """Newest first. Follow ``next`` for older ones."""
        found = desk.list(limit=limit, before=before, state=state)
        return DownloadPage(
            downloads=[view(download) for download in found],
            next=_older(found[-1], limit, state) if len(found) == limit else None,
        )


def _older(last: Download, limit: int, state: DownloadState | None) -> str:
    """Where the page after ``last`` is."""
    more = f"/api/downloads?limit={limit}&before={last.created!r}"
    return f"{more}&state={state}" if state else more


def _add_item(router: APIRouter, desk: Downloads, streams: DownloadStreams) -> None:
    @router.get("/api/downloads/{id}", response_model=DownloadView, summary="Look at a download")
    def show(id: str) -> Response:
        download = desk.get(id)
        return not_found(f"download {id!r}") if download is None else _answer(download, 200)

    @router.get(
        "/api/downloads/{id}/events",
        summary="Watch a download",
        response_class=Response,
        responses={200: content("text/event-stream", description="Until it is over")},
    )
    async def events(id: str) -> Response:
        """Server-sent events: ``progress`` with the download as JSON, at most four a second;
        the last one is named ``done``, ``failed`` or ``cancelled``."""
        if await run_sync(desk.get, id) is None:
            return not_found(f"download {id!r}")
        return sse.stream(streams.of(id))

    @router.delete(
        "/api/downloads/{id}", response_model=DownloadView, summary="Cancel or remove a download"
    )
    def cancel(
        id: str,
        remove: Annotated[
            bool, Query(description="Forget one that is over, with its file if no other has it")
        ] = False,
    ) -> Response:
        """Cancel what waits or runs; one that is over stays as it is, unless it is to be removed:
        then the answer is what it was."""
        if desk.get(id) is None:
            return not_found(f"download {id!r}")
        return _answer(desk.remove(id) if remove else desk.cancel(id), 200)

    @router.post(
        "/api/downloads/{id}/retry",
        response_model=DownloadView,
        status_code=202,
        summary="Try a failed or cancelled download again",
        responses={200: {"model": DownloadView, "description": "It is over, and well"}},
    )
    def retry(id: str) -> Response:
        if desk.get(id) is None:
            return not_found(f"download {id!r}")
        download = desk.retry(id)
        return _answer(download, 202 if download.state.active else 200)


def _add_files(router: APIRouter, desk: Downloads) -> None:
    hidden: dict[str, Any] = {"response_class": Response, "include_in_schema": False}

    @router.get("/files/{id}", response_class=Response, summary="Fetch the file", responses=_FILE)
    @router.head("/files/{id}", **hidden)
    @router.get("/files/{id}/{name:path}", **hidden)
    @router.head("/files/{id}/{name:path}", **hidden)
    def file(request: Request, id: str, name: str = "") -> Response:
        """The file, with ``Range``, ``ETag`` (the SHA-256) and ``If-None-Match``."""
        download = desk.get(id)
        if download is None:
            return not_found(f"download {id!r}")
        if download.state is not DownloadState.DONE or download.sha256 is None:
            why = download.error or f"The download is {download.state}."
            return problem(409, "There is no file yet", why=why, state=str(download.state))
        try:
            path = desk.path(download)
        except DownloadError as error:
            return problem(410, error.what, why=error.why, fix=error.fix)
        return file_response(
            path,
            sha256=download.sha256,
            filename=title(download),
            content_type=download.content_type,
            request=request.headers,
        )


def _answer(download: Download, status: int) -> Response:
    body = view(download)
    return JSONResponse(
        body.model_dump(mode="json"),
        status,
        {"location": body.links.self, "cache-control": "no-store"},
    )
