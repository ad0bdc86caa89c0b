"""One prefixed, coloured stream of what all processes print; a log file for each.

Pipes are read by the event loop, so reading takes no thread. A child is never made to wait:
its pipe is emptied whatever the terminal does, and memory is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from cloche.process.logfile import LogFile

_CHUNK = 64 * 1024

#: A line longer than this many bytes is shown in pieces (the log file has it whole).
_LINE_MOST = 16 * 1024

#: Characters of a line that are kept for error messages.
_KEPT_MOST = 2000

#: What a child that has ended may have left in its pipe, at most.
_REST_MOST = 1024**2

_COLOURS = {
    "cyan": 36,
    "yellow": 33,
    "green": 32,
    "magenta": 35,
    "blue": 34,
    "red": 31,
    "bright-cyan": 96,
    "bright-yellow": 93,
    "bright-green": 92,
    "bright-magenta": 95,
}

#: Control characters: they would move the cursor, clear the screen, name the window. Colours pass.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\\[[0-9;:]*m)")


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


class _Source:
    """What one process printed lately, and where it goes."""

    def __init__(self, colour: int, keep: int, log: LogFile | None) -> None:
        self.colour = colour
        self.log = log
        self.partial = b""
        self.kept: deque[str] = deque(maxlen=keep)
        self.handle: int | None = None
        self.loop: asyncio.AbstractEventLoop | None = None


class Output:
    """The one stream. ``logs`` is the directory of the log files, None for none.

    ``colour`` None means: on a terminal that is not dumb, unless ``NO_COLOR`` is set
    (no-color.org). ``keep`` lines per process are kept for error messages.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        logs: Path | None = None,
        colour: bool | None = None,
        keep: int = 30,
        log_limit: int = 10 * 1024**2,
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self._screen = Screen(stream)
        self._logs = logs
        self._coloured = _wants_colour(stream) if colour is None else colour
        self._keep = keep
        self._log_limit = log_limit
        self._width = len("cloche")
        self._sources: dict[str, _Source] = {}

    def add(self, name: str, colour: str | None = None) -> None:
        """Announce a process, so that the names line up from the first line on."""
        if name in self._sources:
            return
        self._width = max(self._width, len(name))
        palette = list(_COLOURS.values())
        code = _COLOURS.get(colour or "", palette[len(self._sources) % len(palette)])
        log = None
        if self._logs is not None:
            log = LogFile(self._logs / f"{name}.log", limit=self._log_limit)
        self._sources[name] = _Source(code, self._keep, log)

    def attach(self, name: str, handle: int) -> None:
        """Read what a process prints from a pipe, until :meth:`detach`. Takes ``handle`` over."""
        self.add(name)
        os.set_blocking(handle, False)
        source = self._sources[name]
        source.handle, source.loop = handle, asyncio.get_running_loop()
        source.loop.add_reader(handle, self._read, name)

    def detach(self, name: str) -> None:
        """The process ended: read what it left in the pipe and close it."""
        source = self._sources[name]
        rest = _REST_MOST
        while source.handle is not None and rest > 0:
            got = self._read(name)
            if not got:
                break
            rest -= got
        self._close(source)
        if source.partial:
            self._show(name, source, [source.partial])
            source.partial = b""

    def say(self, text: str, name: str = "cloche") -> None:
        """A line (or lines) of the launcher itself, in the same stream."""
        self.add(name)
        source = self._sources[name]
        data = text.encode(errors="backslashreplace") + b"\n"
        if source.log is not None:
            source.log.write(data)
        self._show(name, source, data.splitlines())

    def show(self, name: str, lines: list[bytes]) -> None:
        """Lines of a process that come from elsewhere than its pipe: its log file."""
        self.add(name)
        self._show(name, self._sources[name], lines)

    def tail(self, name: str) -> tuple[str, ...]:
        """The last lines a process printed."""
        source = self._sources.get(name)
        return () if source is None else tuple(source.kept)

    def flush(self) -> None:
        """Wait (2 s at most) until the terminal has everything."""
        self._screen.flush()

    def close(self) -> None:
        """Let go of all pipes and files; what waits for the terminal gets 2 s."""
        for source in self._sources.values():
            self._close(source)
            if source.log is not None:
                source.log.close()
        self._screen.close()

    def _close(self, source: _Source) -> None:
        if source.handle is not None and source.loop is not None:
            if not source.loop.is_closed():
                source.loop.remove_reader(source.handle)
            os.close(source.handle)
            source.handle = None

    def _read(self, name: str) -> int:
        """Read one chunk; 0 when there is none now."""
        source = self._sources[name]
        if source.handle is None:
            return 0
        try:
            data = os.read(source.handle, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return 0
        if not data:
            self._close(source)
            return 0
        if source.log is not None:
            source.log.write(data)
        *lines, source.partial = (source.partial + data).split(b"\n")
        while len(source.partial) > _LINE_MOST:
            lines.append(source.partial[:_LINE_MOST])
            source.partial = source.partial[_LINE_MOST:]
        self._show(name, source, lines)
        return len(data)

    def _show(self, name: str, source: _Source, lines: list[bytes]) -> None:
        if not lines:
            return
        # All lines of a chunk together: one by one they cost four times as much.
        shown = _text(b"\n".join(_pieces(lines))).split("\n")
        source.kept.extend(line[:_KEPT_MOST] for line in shown[-self._keep :])
        prefix = self._prefix(name, source)
        text = prefix + f"\n{prefix}".join(shown) + "\n"
        self._screen.write(text.encode(), lines=len(shown))

    def _prefix(self, name: str, source: _Source) -> str:
        padded = f"{name:<{self._width}} │ "
        return f"\x1b[{source.colour}m{padded}\x1b[0m" if self._coloured else padded


def _pieces(lines: list[bytes]) -> list[bytes]:
    if max(map(len, lines)) <= _LINE_MOST:
        return lines
    return [
        line[start : start + _LINE_MOST]
        for line in lines
        for start in range(0, len(line) or 1, _LINE_MOST)
    ]


def _text(lines: bytes) -> str:
    text = lines.decode(errors="backslashreplace")
    if "\r" in text:  # as a terminal: what follows a carriage return overwrites
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _wants_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()
