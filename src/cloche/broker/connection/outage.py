"""What a consumer does while its server cannot be used: nothing, with growing pauses."""

from __future__ import annotations

import logging
import time

import redis

from cloche.backoff import Backoff

logger = logging.getLogger("cloche.transport")

#: All that redis-py and the socket raise: a lost connection, LOADING, READONLY, OOM, MISCONF, …
ERRORS: tuple[type[Exception], ...] = (redis.exceptions.RedisError, OSError)

_PAUSES = Backoff(first=0.1, factor=2, limit=2.0, jitter=0.3)


#: Seconds for which an outage of the same kind is not told of again: a server that flaps, or an
#: ACL that allows a part of the work, so that success and failure alternate.
QUIET_INTERVAL = 60.0

#: Seconds after which it is told of all the same.
REMIND_INTERVAL = 5.0


class Outage:
    """Whether to try again, told by ``failed`` and ``over``. Two log lines an outage.

    ``patient``: a failure whose next attempt succeeds is none, and costs no line.
    """

    def __init__(self, what: str, *, patient: bool = False) -> None:
        self.what = what
        self._tell_at = 2 if patient else 1
        self._attempts = 0
        self._since = 0.0
        self._again_at = 0.0
        self._told = False
        self._kind = ""
        self._quiet_until = 0.0
        self._denials = 0

    @property
    def pausing(self) -> bool:
        """Whether it is too early to try again."""
        return self._attempts > 0 and time.monotonic() < self._again_at

    @property
    def rest(self) -> float:
        """Seconds until the next attempt."""
        return max(0.0, self._again_at - time.monotonic()) if self._attempts else 0.0

    @property
    def lasting(self) -> bool:
        """Whether the last attempt failed."""
        return self._attempts > 0

    def failed(self, error: BaseException) -> None:
        now = time.monotonic()
        self._attempts += 1
        if self._attempts == 1:
            self._since = now
            self._denials = self._denials + 1 if denied(error) else 0
        if not self._told and self._attempts >= self._tell_at and self._is_news(error, now):
            self._told, self._kind, self._quiet_until = True, _kind(error), now + QUIET_INTERVAL
            logger.warning("%s paused: %s", self.what, plain(error))
        self._again_at = now + _PAUSES.delay(self._attempts + max(0, self._denials - 1))

    def _is_news(self, error: BaseException, now: float) -> bool:
        lasts = now - self._since >= REMIND_INTERVAL and not denied(error)
        return lasts or now >= self._quiet_until or _kind(error) != self._kind

    def over(self) -> None:
        if self._told:
            seconds = time.monotonic() - self._since
            logger.warning("%s resumed after %.1f s", self.what, seconds)
        self._told = False
        self._attempts = 0


def _kind(error: BaseException) -> str:
    """What makes two errors the same: a server's code, a denial's whole text, else the type."""
    if denied(error):
        return str(error)
    code = str(error).partition(" ")[0]
    return f"{type(error).__name__} {code if code.isupper() else ''}"


#: How servers say inside a script that an ACL forbids a command or key; Redis < 7.2, others.
_DENIED = ("user executing the script", "ACL failure")


def denied(error: BaseException) -> bool:
    """Whether an ACL forbids it."""
    if isinstance(error, redis.exceptions.NoPermissionError):
        return True
    return any(words in str(error) for words in _DENIED)


def plain(error: BaseException) -> str:
    """The error in one line, with where to look when an ACL forbids something."""
    text = " ".join(str(error).split())
    if denied(error):
        text += " (the server's ACL LOG names what is missing)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
