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


class Outage:
    """Whether to try again, told by ``failed`` and ``over``. Two log lines an outage."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._attempts = 0
        self._since = 0.0
        self._again_at = 0.0

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
            logger.warning("%s paused: %s", self.what, plain(error))
        self._again_at = now + _PAUSES.delay(self._attempts)

    def over(self) -> None:
        """An attempt succeeded."""
        if self._attempts:
            seconds = time.monotonic() - self._since
            logger.warning("%s resumed after %.1f s", self.what, seconds)
            self._attempts = 0


#: How servers say inside a script that an ACL forbids a command or key; Redis < 7.2, others.
_DENIED = ("user executing the script", "ACL failure")


def plain(error: BaseException) -> str:
    """The error in one line, with where to look when an ACL forbids something."""
    text = " ".join(str(error).split())
    denied = isinstance(error, redis.exceptions.NoPermissionError)
    if denied or any(words in text for words in _DENIED):
        text += " (the server's ACL LOG names what is missing)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
