"""What a download is to everybody who looks at one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DownloadState(StrEnum):
    """Where a download stands."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def active(self) -> bool:
        """Whether something will still happen by itself."""
        return self in ACTIVE


ACTIVE = frozenset({DownloadState.QUEUED, DownloadState.RUNNING, DownloadState.RETRYING})

#: Seconds without a sign of life after which a running download counts as stalled: its
#: worker writes at least once a second.
STALL = 15.0


@dataclass(frozen=True, slots=True)
class Download:
    """One request for a file. Sizes are bytes, ``rate`` bytes/s, times Unix seconds.

    ``received`` counts what lies on disk of this file, resumed parts included; ``total`` is
    None until the server told. ``cached`` says the file was not transferred for this
    request. ``attempts`` counts runs of the task, ``restarts`` transfers resumed within
    them. ``stalled`` says the worker of a running download gave no sign of life lately
    (the broker will give the task to another one, or ask for the download again).
    """

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
    error: str | None
    created: float
    started: float | None
    finished: float | None
    backend: str
    task_id: str
    updated: float
    stalled: bool


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: the part of a request that its task must know.

    ``checksum`` is written ``sha256:…``; ``max_size`` is in bytes.
    """

    url: str
    checksum: str | None
    max_size: int
    filename: str | None
    backend: str
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """A complete file in the cache and what its server said about it.

    ``etag`` and ``last_modified`` are header values as received.
    """

    sha256: str
    size: int
    filename: str
    content_type: str | None
    etag: str | None = None
    last_modified: str | None = None
