"""What the service's API takes and gives, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from cloche.settings.quantities import Bytes
from cloche.tasks.download import Download, DownloadState
from cloche.web.pages import title

_ID = "0198f0c2a7c87d0c8f5d1f2a3b4c5d6e"
_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class DownloadRequest(BaseModel):
    """A request for a file."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"url": "https://example.org/file.zip"}]},
    )

    url: Annotated[str, Field(min_length=1, max_length=8192, description="http or https")]
    checksum: Annotated[
        str | None, Field(description="sha256:…, sha512:…, sha1:… or md5:…", max_length=200)
    ] = None
    max_size: Annotated[
        Bytes | None, Field(description="Bytes, or text such as 200M; within download.max_size")
    ] = None
    filename: Annotated[str | None, Field(description="Name to save under", max_length=255)] = None
    backend: Annotated[str | None, Field(description="http, yt-dlp or auto")] = None
    refresh: Annotated[bool, Field(description="Ask the server even if a fresh copy is here")] = (
        False
    )


class Links(BaseModel):
    """Where to go from a download; ``file`` only once it is there."""

    self: str
    events: str
    file: str | None


class DownloadView(BaseModel):
    """A download now. Sizes are bytes, ``rate`` bytes per second, times Unix seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _ID,
                    "url": "https://example.org/file.zip",
                    "state": "done",
                    "received": 1048576,
                    "total": 1048576,
                    "rate": 0.0,
                    "sha256": _SHA,
                    "filename": "file.zip",
                    "content_type": "application/zip",
                    "size": 1048576,
                    "cached": False,
                    "attempts": 1,
                    "restarts": 0,
                    "stalled": False,
                    "error": None,
                    "created": 1760000000.0,
                    "started": 1760000000.1,
                    "finished": 1760000002.3,
                    "backend": "http",
                    "task_id": _ID,
                    "links": {
                        "self": f"/api/downloads/{_ID}",
                        "events": f"/api/downloads/{_ID}/events",
                        "file": f"/files/{_ID}/file.zip",
                    },
                }
            ]
        }
    )

    id: str
    url: str
    state: DownloadState
    received: int
    total: int | None
    rate: float
    sha256: str | None
    filename: str | None
    content_type: str | None
    size: int | None
    cached: bool
    attempts: int
    restarts: int
    stalled: bool
    error: str | None
    created: float
    started: float | None
    finished: float | None
    backend: str
    task_id: str
    links: Links


class DownloadPage(BaseModel):
    """Downloads, newest first; ``next`` is the address of the following page."""

    downloads: list[DownloadView]
    next: str | None


class TaskView(BaseModel):
    """What the result backend knows of a task.

    ``state`` PENDING with ``known`` false: nothing is stored, it may wait, have expired, or
    never have been. ``progress`` is what the task last stored while it runs.
    """

    id: str
    known: bool
    state: str
    name: str | None = None
    result: Any = None
    progress: Any = None
    exception: str | None = None
    traceback: str | None = None
    worker: str | None = None
    queue: str | None = None
    retries: int = 0
    finished: float | None = None


def view(download: Download) -> DownloadView:
    """A download as the API shows it."""
    fields = {name: getattr(download, name) for name in Download.__dataclass_fields__}
    wanted = {name: fields[name] for name in DownloadView.model_fields if name in fields}
    return DownloadView(**wanted, links=links(download))


def links(download: Download) -> Links:
    """The addresses that belong to a download."""
    here = f"/api/downloads/{download.id}"
    done = download.state is DownloadState.DONE
    name = quote(title(download), safe="")
    return Links(
        self=here, events=f"{here}/events", file=f"/files/{download.id}/{name}" if done else None
    )
