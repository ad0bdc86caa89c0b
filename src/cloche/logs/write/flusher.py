"""The thread that empties a logger's buffer: by size, by time, on demand, at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress

from cloche.logs.codec import Limits, encode
from cloche.logs.record import LogRecord
from cloche.logs.write.shipper import Shipper
from cloche.settings.model import LogSettings

logger = logging.getLogger(__name__)

#: Seconds between looks for what ended processes left on disk.
_ADOPT_EVERY = 30.0
#: Lines put aside that are written together, and bytes of one that does not wait for others.
AT_ONCE = 32
_LONG = 4096


class Flusher:
    """``awake``: the thread will look at the buffer by itself. ``hurries``: before its time."""

    def __init__(
        self, buffer: deque[LogRecord], shipper: Shipper, logs: LogSettings, limits: Limits
    ) -> None:
        self._buffer = buffer
        self._shipper = shipper
        self._logs = logs
        self._limits = limits
        self._adopted_at = 0.0
        self._reset()

    def start_anew(self) -> None:
        """In a forked child: what the parent has in memory, it will send itself."""
        self._buffer.clear()
        self._shipper.abandon()
        self._reset()

    def _reset(self) -> None:
        self.awake = self.hurries = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._call = threading.Event()
        self._hurry = threading.Event()
        self._cycles = threading.Condition()
        self._wanted = self._done = 0
        self._aside: deque[bytes] = deque()
        self._kept = 0
        self._in_hand: list[bytes] = []
        self._closing = self._ended = False

    # Called by whoever logs

    def wake(self) -> None:
        """There is something to send, in time."""
        if self._ended:
            self._keep_the_rest()
            self._shipper.counts.tell()
            return
        self.awake = True
        self._call.set()
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._start()

    def hurry(self) -> None:
        """There is enough to send now."""
        self.hurries = True
        self._hurry.set()

    def flush(self, timeout: float | None) -> bool:
        """Whether all that was there when it was called is gone within ``timeout`` seconds."""
        return self._flush(timeout, closing=False)

    def _flush(self, timeout: float | None, *, closing: bool) -> bool:
        with self._cycles:
            self._wanted += 1
            wanted, self._closing = self._wanted, closing
        self.hurry()
        self.wake()
        with self._cycles:
            return self._cycles.wait_for(lambda: self._done >= wanted, timeout)

    def close(self, timeout: float) -> None:
        """Flush, end the thread, close what is open. What cannot leave goes to disk."""
        if self._thread is not None and self._flush(timeout, closing=True):
            self._thread.join(timeout)
        self._keep_the_rest()
        self._shipper.close()
        if self._thread is not None and not self._thread.is_alive():
            self._reset()  # whoever logs again begins again
        self._closing = False

    def end(self, timeout: float) -> None:
        """`close` at the end of the process; whatever is logged later goes to disk at once."""
        self.close(timeout)
        self.awake, self._ended = False, True

    def encoded(self, record: LogRecord) -> bytes:
        """Its line; nothing for one that cannot be written, which is counted as dropped."""
        try:
            return encode(record, self._limits)
        except Exception as error:  # noqa: BLE001 (whatever it holds is code of theirs)
            logger.debug("a record cannot be encoded: %r", error)
            self._shipper.counts.add("taken", 1)
            self._shipper.counts.drop("cannot be encoded", 1)
            return b""

    def wait_for_room(self, room: int) -> None:
        """Return when fewer than ``room`` records wait."""
        with self._cycles:
            while len(self._buffer) >= room:
                self.hurry()
                if not self.awake:
                    self.wake()
                self._cycles.wait(0.1)

    def drop_oldest(self) -> None:
        try:
            self._buffer.popleft()
        except IndexError:
            return
        self._shipper.counts.add("taken", 1)
        self._shipper.counts.drop("buffer full", 1)

    def turn_away(self) -> None:
        """Lose one that there is no room for."""
        self._shipper.counts.add("taken", 1)
        self._shipper.counts.drop("buffer full", 1)

    def keep(self, line: bytes) -> None:
        """Keep one on disk. It is there when this returns, or counted as dropped."""
        if line:
            self._keep([line])

    def put_aside(self, line: bytes) -> None:
        """Keep one on disk, with the next few: a write for each is half of what it costs."""
        if not line:
            return
        self._aside.append(line)
        if len(self._aside) >= AT_ONCE or len(line) > _LONG:
            self._keep_aside()

    def _keep_aside(self) -> None:
        lines, take = [], self._aside.popleft
        with suppress(IndexError):  # others take, too
            while True:
                lines.append(take())
        if lines:
            self._keep(lines)

    def _keep(self, lines: list[bytes]) -> None:
        self._shipper.counts.add("taken", len(lines))
        self._shipper.keep(b"".join(lines), len(lines))
        self._kept += len(lines)
        if self._kept >= self._logs.batch and not self.hurries:
            self.hurry()

    @property
    def aside(self) -> int:
        """Records put aside that are still in memory, fewer than ``AT_ONCE`` a thread."""
        return len(self._aside)

    # The thread

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None and self._thread.is_alive():
                return
            thread = threading.Thread(target=self._run, name="cloche-execution-log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is going down: `close` does what is left
                return
            self._thread = thread

    def _run(self) -> None:
        while True:
            self._call.wait()
            self._hurry.wait(self._logs.interval)
            self._hurry.clear()
            self.hurries = False
            try:
                self._cycle()
            except Exception:
                logger.exception("execution log: a flush failed, and is tried again")
                time.sleep(1)
                continue
            if self._is_over():
                return
            self.awake = False
            self._call.clear()
            # What came since the cycle began has found us awake.
            if self._is_wanted():
                self.wake()

    def _is_wanted(self) -> bool:
        waits = self._buffer or self._aside or self._shipper.spool.pending
        return bool(waits) or self._wanted > self._done

    def _is_over(self) -> bool:
        with self._cycles:
            return self._closing and self._done >= self._wanted

    def _cycle(self) -> None:
        with self._cycles:
            wanted = self._wanted
        self._kept = 0
        self._keep_aside()
        if self._shipper.spool.pending:
            self._shipper.replay()
        if self._in_hand:  # of a cycle that failed
            self._ship_in_hand()
        rest = len(self._buffer)
        while rest > 0:
            rest -= self._send_some()
        self._adopt_now_and_then()
        self._shipper.counts.tell()
        with self._cycles:
            self._done = wanted
            self._cycles.notify_all()

    def _send_some(self) -> int:
        """Send a message's worth; how many records that was."""
        lines, taken = self._taken()
        if lines:
            self._shipper.counts.add("taken", len(lines))
            self._in_hand = lines
            self._ship_in_hand()
        with self._cycles:
            self._cycles.notify_all()  # there is room
        return taken or len(self._buffer) + 1

    def _ship_in_hand(self) -> None:
        self._shipper.ship(self._in_hand)
        self._in_hand = []

    def _taken(self) -> tuple[list[bytes], int]:
        """Lines of a message, and how many records left the buffer for them."""
        lines: list[bytes] = []
        size, taken, most = 0, 0, self._logs.max_batch_size
        take, encoded = self._buffer.popleft, self.encoded
        while len(lines) < self._logs.max_batch and size < most:
            try:
                record = take()
            except IndexError:
                break
            taken += 1
            if line := encoded(record):
                size += len(line)
                lines.append(line)
        return lines, taken

    def _adopt_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._adopted_at >= _ADOPT_EVERY:
            self._adopted_at = now
            self._shipper.adopt()

    def _keep_the_rest(self) -> None:
        """On disk; also what the thread tries to send and may not: twice is once by its id."""
        self._keep_aside()
        if lines := self._in_hand:
            self._shipper.keep(b"".join(lines), len(lines))
        while self._buffer:
            lines, _ = self._taken()
            if lines:
                self._shipper.counts.add("taken", len(lines))
                self._shipper.keep(b"".join(lines), len(lines))
