"""Messages that could not be sent wait in a local file and are sent later, each once.

One file per server in a directory that processes of one host may share: an advisory lock
(flock) keeps them apart. Every line is synced to the disk before the publisher goes on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import orjson

from cloche.broker.connection.outage import ERRORS
from cloche.process_local import ProcessLocal

logger = logging.getLogger("cloche.transport")

#: Seconds between attempts to send what was spooled.
ATTEMPT_EVERY = 1.0


def default_directory() -> Path:
    """Where spools are unless told otherwise: the user's state directory (XDG)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "cloche" / "spool"


@dataclass(frozen=True, slots=True)
class Spooled:
    """A routed message. ``id`` makes it unique, ``wait`` is ms from ``at`` (Unix seconds)."""

    id: str
    queue: str
    suffix: str
    wait: int
    at: float
    text: str
    task_id: str

    @property
    def rest(self) -> int:
        """ms it still has to wait."""
        return max(0, int(self.wait - (time.time() - self.at) * 1000))


class _Replayer:
    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.starting = threading.Lock()


class MessageSpool:
    """The file ``name`` in ``directory``. ``send`` sends one message, once per id."""

    def __init__(self, directory: Path, name: str, send: Callable[[Spooled], None]) -> None:
        self.path = directory / f"{name}.spool"
        self._send = send
        self._sent: set[str] = set()
        self._replayer = ProcessLocal(_Replayer)

    def pending(self) -> bool:
        """Whether there is something to send."""
        try:
            return self.path.stat().st_size > 0
        except FileNotFoundError:
            return False

    def append(self, one: Spooled) -> None:
        """Keep a message; it is on the disk when this returns. Raises OSError."""
        with self._locked() as file:
            file.seek(0, os.SEEK_END)
            file.write(orjson.dumps(asdict(one)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._start()

    def replay(self) -> int:
        """Send all in order and forget them; how many. Raises what ``send`` raises.

        Interrupted anywhere, it is simply repeated: a message sent before is not sent again. This
        process goes on where it was, so that a connection cut again and again brings it forward.
        """
        sent = 0
        with self._locked() as file:
            file.seek(0)
            for line in file.read().splitlines():
                one = _parsed(line)
                if one is not None and one.id not in self._sent:
                    self._send(one)
                    self._sent.add(one.id)
                    sent += 1
            file.truncate(0)
            os.fsync(file.fileno())
            self._sent.clear()
        if sent:
            logger.warning("%d messages spooled during an outage were published", sent)
        return sent

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _start(self) -> None:
        replayer = self._replayer.get()
        with replayer.starting:
            if replayer.thread is None or not replayer.thread.is_alive():
                logger.warning("publishing is paused; messages are kept in %s", self.path)
                thread = threading.Thread(target=self._run, name="cloche-spool", daemon=True)
                replayer.thread = thread
                thread.start()

    def _run(self) -> None:
        while self.pending():
            time.sleep(ATTEMPT_EVERY)
            try:
                self.replay()
            except ERRORS:
                continue


def _parsed(line: bytes) -> Spooled | None:
    try:
        return Spooled(**orjson.loads(line))
    except (ValueError, TypeError):
        # The process died while writing it, before its publisher was told it was kept.
        logger.warning("an unfinished line in the spool was dropped")
        return None
