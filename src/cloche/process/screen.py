"""Writing to the terminal without ever waiting for it."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections import deque
from typing import TextIO


class Screen:
    """A bounded queue in front of a stream, emptied by a thread of its own.

    A stopped terminal (Ctrl-S, a pager) blocks only that thread. When more than ``limit``
    bytes wait, new lines are dropped and counted; the count is shown once there is room.
    """

    def __init__(self, stream: TextIO, *, limit: int = 4 * 1024**2) -> None:
        self._stream = stream
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._dropped = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: bytes, lines: int = 1) -> None:
        """Queue whole ``lines``, with their newlines."""
        with self._changed:
            if self._closed:
                return
            if self._waiting + len(text) > self._limit:
                self._dropped += lines
                return
            self._lines.append(text)
            self._waiting += len(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, patience: float = 2.0) -> None:
        """Write what waits, for at most ``patience`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(patience)

    def flush(self, patience: float = 2.0) -> None:
        """Wait until all is written, for at most ``patience`` seconds."""
        deadline = time.monotonic() + patience
        with self._changed:
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._put(batch)
            except (OSError, ValueError):
                self._give_up()
                return
            with self._changed:
                self._waiting -= len(batch)
                self._changed.notify_all()

    def _next(self) -> bytes:
        """The next lines to write, together; empty at the end."""
        with self._changed:
            while not self._lines and not self._closed:
                self._changed.wait()
            batch = b"".join(self._lines)
            self._lines.clear()
            if self._dropped and not self._closed:
                note = f"… {self._dropped} lines not shown: the terminal is too slow\n".encode()
                self._dropped = 0
                self._waiting += len(note)
                batch += note
            return batch

    def _give_up(self) -> None:
        """The reader is gone (``cloche up | head``): nothing more is shown."""
        with self._changed:
            self._closed = True
            self._waiting = 0
            self._lines.clear()
            self._changed.notify_all()

    def _put(self, data: bytes) -> None:
        try:
            handle = self._stream.fileno()
        except (io.UnsupportedOperation, AttributeError):
            self._stream.write(data.decode(errors="replace"))
            with contextlib.suppress(AttributeError):
                self._stream.flush()
            return
        # Past the stream's own buffer, whose lock a blocked write would hold at exit.
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
