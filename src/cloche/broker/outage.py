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


#: Seconds for which the same denial is not logged again: an ACL that allows a part of the work
#: makes success and failure alternate.
QUIET = 60.0


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
        self._denial = ""
        self._denials = 0
        self._quiet_until = 0.0

    @property
    def pausing(self) -> bool:
        """Whether it is too early to try again."""
        return self._attempts > 0 and time.monotonic() < self._again_at

    @property
    def lasting(self) -> bool:
        """Whether the last attempt failed."""
        return self._attempts > 0

    def failed(self, error: BaseException) -> None:
        """An attempt failed."""
        now = time.monotonic()
        self._attempts += 1
        if self._attempts == 1:
            self._since = now
        if self._attempts == self._tell_at:
            self._begin(plain(error), now, denial=denied(error))
        self._again_at = now + _PAUSES.delay(self._attempts + self._denials)

    def _begin(self, text: str, now: float, *, denial: bool) -> None:
        """Tell of it, unless it is a denial that was told of a moment ago."""
        if denial and text == self._denial and now < self._quiet_until:
            self._denials += 1
            return
        self._denial, self._denials = text if denial else "", 0
        self._quiet_until = now + QUIET
        logger.warning("%s paused: %s", self.what, text)

    def over(self) -> None:
        """An attempt succeeded."""
        if self._attempts >= self._tell_at and not self._denials:
            seconds = time.monotonic() - self._since
            logger.warning("%s resumed after %.1f s", self.what, seconds)
        self._attempts = 0


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
