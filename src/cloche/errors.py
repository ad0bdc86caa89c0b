"""Every error Cloche raises, drawn as one tree, each with its exit code.

::

    ClocheError                 1   something failed while running
    ├── SettingsError           2   a setting is unknown, malformed or contradictory
    ├── BrokerError             3   the broker cannot be used (``.fault`` says how)
    ├── PortTakenError          4   another process listens on a port we need
    ├── AppError                5   the Celery application cannot be loaded
    ├── DatabaseError           6   the database cannot be opened or migrated
    ├── ProcessError            1   a supervised process did not do what it should
    │   ├── NotReadyError       1   it was not ready in time
    │   ├── CrashLoopError      1   it ended again and again
    │   ├── NotRunningError     1   no launcher runs here that could be asked
    │   └── ExistingWorkerError 1   a worker of this application runs already, and may not
    ├── NotInChargeError        1   another scheduler sends what this one would have sent
    ├── ExtraMissingError       2   an optional dependency is not installed
    ├── LogQueryError           2   a question about execution logs cannot be understood
    ├── WorkflowError           1   a workflow run or step is used in a way that cannot work
    ├── CoroutineTaskError      5   a coroutine task is declared or called in a way that cannot work
    ├── TaskCancelledError          the body of a coroutine task was cancelled by nobody's wish
    ├── SpoolFullError          1   the execution log's files on disk have reached their cap
    └── DownloadError           1   a download failed
        ├── EgressRefusedError      the address must not be contacted (SSRF guard)
        ├── DownloadRefusedError    asking again cannot help (404, too large, wrong checksum)
        ├── DownloadBrokenError     asking again may help (connection lost, 5xx, 429)
        └── DownloadCancelledError  somebody cancelled it

A message answers three questions: what happened, why, what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class ClocheError(Exception):
    """Base of all errors of this package.

    ``what`` is one sentence; ``why`` and ``fix`` are optional further sentences.
    ``str(error)`` joins them on separate lines, ready to print.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Celery pickles and rebuilds exceptions by calling the class with its arguments;
        # keyword-only fields would be lost without this.
        return (_rebuild, (type(self), self.what, self.why, self.fix), dict(self.__dict__))


def _rebuild(cls: type[ClocheError], what: str, why: str, fix: str) -> ClocheError:
    error = cls.__new__(cls)
    ClocheError.__init__(error, what, why=why, fix=fix)
    return error


def to_fields(error: ClocheError) -> dict[str, str]:
    """An error as plain text fields, to be told to another process."""
    return {"type": type(error).__name__, "what": error.what, "why": error.why, "fix": error.fix}


def from_fields(fields: Mapping[str, str]) -> ClocheError:
    """The error another process told; of an unknown type, a plain ClocheError."""
    found = globals().get(fields["type"])
    kind = found if isinstance(found, type) and issubclass(found, ClocheError) else ClocheError
    return _rebuild(kind, fields["what"], fields["why"], fields["fix"])


class SettingsError(ClocheError):
    """A setting is unknown, malformed or contradicts another.

    ``problems`` lists what is wrong, one line each, where several things are.
    """

    exit_code = 2

    def __init__(
        self, what: str, *, problems: tuple[str, ...] = (), why: str = "", fix: str = ""
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.problems = problems or (what,)


class BrokerFault(StrEnum):
    """Why a broker cannot be used, told apart because each has its own remedy."""

    REFUSED = "refused"
    DNS = "dns"
    TIMEOUT = "timeout"
    AUTH = "auth"
    TLS = "tls"
    LOADING = "loading"
    READ_ONLY = "read-only"
    WRONG_DB = "wrong-db"
    PERMISSION = "permission"
    FULL = "full"
    NOT_A_BROKER = "not-a-broker"
    BAD_URL = "bad-url"
    OTHER = "other"


class BrokerError(ClocheError):
    """The broker cannot be used; ``fault`` tells how, ``str()`` in plain language."""

    exit_code = 3

    def __init__(self, what: str, *, fault: BrokerFault, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.fault = fault


class PortTakenError(ClocheError):
    """Another process listens on ``port``; ``free`` is the next port nobody uses."""

    exit_code = 4

    def __init__(self, what: str, *, port: int, free: int, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.port = port
        self.free = free


class AppError(ClocheError):
    """The Celery application named by ``-A`` cannot be loaded."""

    exit_code = 5


class DatabaseError(ClocheError):
    """The database cannot be opened or migrated."""

    exit_code = 6


class ProcessError(ClocheError):
    """A supervised process did not do what it should."""


class NotReadyError(ProcessError):
    """A process was not ready within its deadline."""


class CrashLoopError(ProcessError):
    """A process ended again and again; the message carries its last log lines."""


class NotRunningError(ProcessError):
    """No launcher runs in the run directory that could be asked."""


class ExistingWorkerError(ProcessError):
    """A worker of this application runs already, and it was said that none may."""


class NotInChargeError(ClocheError):
    """Another scheduler sends what this one would have sent."""


class ExtraMissingError(ClocheError):
    """An optional dependency is not installed; the message names the extra."""

    exit_code = 2


class LogQueryError(ClocheError):
    """A question about execution logs cannot be understood."""

    exit_code = 2


class WorkflowError(ClocheError):
    """A workflow run or one of its steps is used in a way that cannot work."""


class CoroutineTaskError(ClocheError):
    """A coroutine task is declared or called in a way that cannot work."""

    exit_code = 5


class TaskCancelledError(ClocheError):
    """The body of a coroutine task ended with CancelledError though nobody cancelled the task."""


class SpoolFullError(ClocheError):
    """The execution log's files on disk have reached their cap (``logs.max_spool``)."""


class DownloadError(ClocheError):
    """A download failed."""


class EgressRefusedError(DownloadError):
    """The URL or an address behind it must not be contacted (SSRF guard)."""


class DownloadRefusedError(DownloadError):
    """The download can never succeed as asked: 404, over the size cap, wrong checksum."""


class DownloadBrokenError(DownloadError):
    """The transfer failed in a way that another attempt may mend.

    ``retry_after`` is the server's own wish in seconds, if it gave one (RFC 9110 §10.2.3).
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.retry_after = retry_after


class DownloadCancelledError(DownloadError):
    """Somebody cancelled the download."""
