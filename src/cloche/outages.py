"""One voice in an outage: a line when it begins, one a minute, one when it is over.

Whoever fails because something is away says so as often as it likes; what is printed is decided
here, once per process and thing. The end is found by asking the thing itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cloche.process_local import here

logger = logging.getLogger("cloche.outages")

#: Seconds between two lines about the same thing, unless told otherwise.
REMIND = 60.0
#: Seconds between two questions whether it is back.
ASK = 0.5


class OutageReporter:
    """Speaks of ``what`` (``the broker``). ``answers`` asks it: raises while it is away.

    ``meanwhile`` says what that means, in a few words. A thing that goes and comes again and
    again is told of once a ``remind``, with how often and for how long it was away.
    """

    def __init__(
        self,
        what: str,
        answers: Callable[[], object],
        meanwhile: str,
        *,
        remind: float = REMIND,
        ask: float = ASK,
    ) -> None:
        self.what = what
        self._answers = answers
        self._meanwhile = meanwhile
        self._remind, self._ask = remind, ask
        self._begin()

    def _begin(self) -> None:
        self._process = here()
        self._lock = threading.Lock()
        self._since: float | None = None
        self._why = ""
        self._times, self._away = 0, 0.0
        self._told_at = float("-inf")
        self._told = False
        self._thread: threading.Thread | None = None

    def _begin_anew(self) -> None:
        """A child inherits the parent's state, and none of its threads."""
        process = here()
        with process.lock:
            if self._process is not process:
                self._begin()

    @property
    def away(self) -> bool:
        """Whether it is away as far as we know."""
        return self._since is not None and self._process is here()

    def failed(self, why: str) -> None:
        """Something failed because it is away; from any thread."""
        self._begin_anew()
        with self._lock:
            self._why = why
            if self._since is not None:
                return
            self._since = time.monotonic()
            if self._since - self._told_at >= self._remind:
                self._say("%s does not answer (%s): %s", self.what, why, self._meanwhile)
                self._told = True
            if self._thread is None:
                name = f"cloche-voice-{self.what}"
                self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
                self._thread.start()

    def rest(self) -> None:
        """Nobody needs it any more: say nothing further of an outage under way."""
        self._begin_anew()
        with self._lock:
            self._since, self._times, self._away, self._told = None, 0, 0.0, False

    def _say(self, text: str, *values: object) -> None:
        self._told_at = time.monotonic()
        logger.warning(text, *values)

    def _watch(self) -> None:
        while True:
            time.sleep(self._ask)
            back = self._since is not None and self._is_back()
            with self._lock:
                if back and self._since is not None:
                    self._over()
                elif time.monotonic() - self._told_at >= self._remind:
                    self._go_on()
                if self._since is None and not self._times:
                    self._thread = None
                    return

    def _is_back(self) -> bool:
        try:
            self._answers()
        except Exception:  # noqa: BLE001 (however it fails: it is not back)
            return False
        return True

    def _over(self) -> None:
        seconds = time.monotonic() - (self._since or 0.0)
        self._since = None
        if self._told:
            self._told = False
            self._say("%s answers again, after %.1f s", self.what, seconds)
        else:  # told of with the next reminder
            self._times += 1
            self._away += seconds

    def _go_on(self) -> None:
        """A minute is over: what there is to say of it."""
        if self._since is not None:
            seconds = time.monotonic() - self._since
            self._say("%s is away for %.0f s now (%s)", self.what, seconds, self._why)
            self._told = True
        elif self._times:
            times = "once" if self._times == 1 else f"{self._times} times"
            self._say("%s was away %s more since, for %.1f s in all", self.what, times, self._away)
        self._times, self._away = 0, 0.0
