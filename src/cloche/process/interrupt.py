"""A Ctrl-C that is not lost while a foreground command waits.

Python raises KeyboardInterrupt wherever the main thread is. In a destructor it is printed and
dropped ("Exception ignored in"), and redis-py's clients have destructors: a Ctrl-C in the
moment a failed attempt is cleared away did nothing.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """Remembers SIGINT for as long as it is entered; :meth:`sleep` ends by it, early or at once.

    Outside the main thread, where no handler can be set, it is a plain sleep.
    """

    def __init__(self) -> None:
        self._heard = False
        self._earlier: signal._HANDLER = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``. Raises KeyboardInterrupt if SIGINT came, now or before."""
        if not self._heard:
            time.sleep(seconds)
        if self._heard:
            raise KeyboardInterrupt

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        self._heard = True  # an Event has a lock, which the interrupted code may hold
        raise KeyboardInterrupt
