"""Where a batch goes: to the broker, and while it is away where ``logs.fallback`` says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from celery import Celery

from cloche.errors import DatabaseError, SpoolFullError
from cloche.logs.counts import Counts
from cloche.logs.place import Place
from cloche.logs.sending import Broker
from cloche.logs.spool import Drawer, Spool, lines_of, orphans
from cloche.logs.writer import Writer
from cloche.settings.model import LogSettings, Settings

logger = logging.getLogger(__name__)


#: Seconds that closing waits for a send that goes on.
_PATIENCE = 0.5


class Shipper:
    """Every batch it is given has a place when it returns, or is counted as dropped.

    One batch at a time; `keep` may be called meanwhile, from any thread.
    """

    def __init__(self, app: Celery, settings: Settings, logs: LogSettings) -> None:
        self.place = Place(settings.run_dir)
        self.counts = Counts(self.place)
        self.spool = Spool(self.place.spool, limit=logs.max_spool, fsync=logs.fsync)
        queue = settings.families["logs"].queue or app.conf.task_default_queue
        self._broker = Broker(app, queue, logs.max_queued)
        self._settings = settings
        self._logs = logs
        self._writer: Writer | None = None
        self._one = threading.Lock()

    def ship(self, lines: Sequence[bytes]) -> None:
        """Send these; what waits on disk goes first, so that the order stays."""
        with self._one:
            if not (self._replayed() and self._sent(lines)):
                self._fall_back(lines)

    def keep(self, lines: bytes, count: int) -> bool:
        """On the disk of this machine, or dropped; whether it is there."""
        try:
            self.spool.append(lines)
        except SpoolFullError:
            self.counts.drop("spool full", count)
        except OSError as error:
            self.counts.drop(f"spool failed ({error.strerror})", count)
        else:
            self.counts.add("spooled", count)
            return True
        return False

    def replay(self) -> bool:
        """Send what this process keeps; whether nothing is left."""
        with self._one:
            return self._replayed()

    def adopt(self) -> int:
        """Send what ended processes left; how many records there were."""
        with self._one:
            return sum(map(self._adopted, orphans(self.place.spool)))

    def close(self) -> None:
        """Close connections. What is on disk stays for the next process.

        Whoever hangs in a send keeps his until it ends, or the process does.
        """
        self.counts.tell()
        if not self._one.acquire(timeout=_PATIENCE):
            return
        try:
            self.spool.close()
            self._broker.disconnect()
            if self._writer is not None:
                self._writer.close()
        finally:
            self._one.release()

    def abandon(self) -> None:
        """In a forked child: nothing that the parent has open is used."""
        self._one = threading.Lock()
        self.spool.abandon()
        self._broker.abandon()
        self.counts = Counts(self.place)

    def _sent(self, lines: Sequence[bytes]) -> bool:
        if not self._broker.send(b"".join(lines), len(lines)):
            return False
        self.counts.add("sent", len(lines))
        return True

    def _fall_back(self, lines: Sequence[bytes]) -> None:
        mode = self.place.mode(self._logs.fallback)
        if mode == "drop":
            self.counts.drop("broker away", len(lines))
        elif mode == "spool" or not self._written(lines):
            self.keep(b"".join(lines), len(lines))

    def _written(self, lines: Sequence[bytes]) -> bool:
        """Straight to the database, which dedupes what the broker delivers all the same."""
        if self._writer is None:
            self._writer = Writer(self._settings)
        try:
            self._writer.write(lines)
        except DatabaseError as error:
            logger.debug("not written directly: %s", error)
            return False
        self.counts.add("direct", len(lines))
        return True

    def _replayed(self) -> bool:
        for segment in self.spool.sealed():
            if not self._emptied(segment):
                return False
            self.spool.done(segment)
        return True

    def _emptied(self, segment: Path) -> bool:
        """Whether all its lines have a better place now."""
        lines, torn = lines_of(segment)
        for batch in batches(lines, self._logs):
            if not self._sent(batch) and not (self._mode_is_direct() and self._written(batch)):
                return False
        if torn:
            logger.warning("%s ends in an unfinished line, which was never accepted", segment)
        self.counts.add("replayed", len(lines))
        return True

    def _mode_is_direct(self) -> bool:
        return self.place.mode(self._logs.fallback) == "direct"

    def _adopted(self, drawer: Drawer) -> int:
        records = 0
        for segment in drawer.segments():
            if not self._emptied(segment):
                break
            records += len(lines_of(segment)[0])
            segment.unlink()
        drawer.remove() if not drawer.segments() else drawer.release()
        return records


def batches(lines: Sequence[bytes], logs: LogSettings) -> Iterator[Sequence[bytes]]:
    """Cut where a message is full."""
    start = size = 0
    for end, line in enumerate(lines):
        if end > start and (
            end - start >= logs.max_batch or size + len(line) > logs.max_batch_size
        ):
            yield lines[start:end]
            start, size = end, 0
        size += len(line)
    if start < len(lines):
        yield lines[start:]
